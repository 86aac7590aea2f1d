// A zip archive of files as they are, without compression: images are compressed already.

const UTF8 = 1 << 11; // the names are
const MOST_BYTES = 0xffffffff; // what 32 bits hold, without the extension for larger archives

// From [{ name, blob }], all of one date; names that occur twice are numbered.
export async function zip(files, date = new Date()) {
  const parts = [], directory = [], names = new Set();
  let offset = 0;
  for (const { name, blob } of files) {
    const bytes = new Uint8Array(await blob.arrayBuffer()), path = new TextEncoder().encode(unused(name, names));
    const about = [20, UTF8, 0, ...dosTime(date), crc32(bytes), bytes.length, bytes.length, path.length, 0];
    const sizes = [2, 2, 2, 2, 2, 4, 4, 4, 2, 2];
    parts.push(record(0x04034b50, about, sizes), path, blob);
    directory.push(record(0x02014b50, [20, ...about, 0, 0, 0, 0, offset], [2, ...sizes, 2, 2, 2, 4, 4]), path);
    offset += 30 + path.length + bytes.length;
    if (offset > MOST_BYTES) throw new Error("The archive would be larger than 4 GB: save the images one by one.");
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record(0x06054b50, [0, 0, files.length, files.length, size, offset, 0], [2, 2, 2, 2, 4, 4, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

// A signature and numbers of so many bytes each, little endian.
function record(signature, numbers, sizes) {
  const view = new DataView(new ArrayBuffer(4 + sizes.reduce((sum, size) => sum + size)));
  view.setUint32(0, signature, true);
  let at = 4;
  numbers.forEach((number, n) => {
    if (sizes[n] === 2) view.setUint16(at, number, true);
    else view.setUint32(at, number, true);
    at += sizes[n];
  });
  return new Uint8Array(view.buffer);
}

function unused(name, names) {
  let path = name;
  for (let n = 2; names.has(path); n += 1) path = name.replace(/(\.[^./]*)?$/, `_${n}$1`);
  names.add(path);
  return path;
}

// Time and date, two bytes each: since 1980, and to two seconds.
function dosTime(date) {
  const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
  return [time, ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate()];
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}
