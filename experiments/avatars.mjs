// Draws avatars with the npm packages of DiceBear: node avatars.mjs FOLDER FIRST COUNT SIDE (see transfer.py).
import { mkdirSync, writeFileSync } from "node:fs";
import { createAvatar } from "@dicebear/core";
import * as lorelei from "@dicebear/lorelei";
import { Resvg } from "@resvg/resvg-js";

const folder = process.argv[2];
const [first, count, side] = process.argv.slice(3).map(Number);
mkdirSync(folder, { recursive: true });
for (let i = first; i < first + count; i++) {
  const svg = createAvatar(lorelei, {
    seed: `cips3d ${i}`,
    backgroundColor: ["b6e3f4", "c0aede", "d1d4f9", "ffd5dc", "ffdfbf"],
    hairColor: ["2c1b18", "4a312c", "724133", "a55728", "b58143", "d6b370", "e8e1e1"],
    skinColor: ["f2d3b1", "ecad80", "9e5622", "763900"],
  }).toString();
  const png = new Resvg(svg, { fitTo: { mode: "width", value: side } }).render().asPng();
  writeFileSync(`${folder}/${String(i).padStart(4, "0")}.png`, png);
}
