"""What one does with trained models: blending two of them, mixing the styles of subjects, finding a picture's subject."""
