"""The paper's comparisons (Table 1, Fig. 8 and 9), one file each behind the generator protocol."""
