import { assert, assertEquals, assertThrows } from "@std/assert";
import { bootBlobs, bootRom, compressedKernel } from "./boot.ts";

/** An ELF file for i386 with one segment of `size` bytes to load at `address`. */
function elf(address: number, size: number): Uint8Array<ArrayBuffer> {
  const file = new Uint8Array(84 + size);
  const view = new DataView(file.buffer);
  view.setUint32(0, 0x7f454c46, false);
  file[4] = 1;
  view.setUint16(18, 3, true);
  view.setUint32(24, address + 16, true);
  view.setUint32(28, 52, true);
  view.setUint16(44, 1, true);
  view.setUint32(52, 1, true);
  view.setUint32(56, 84, true);
  view.setUint32(64, address, true);
  view.setUint32(68, size, true);
  return file;
}

const image = {
  vmlinux: elf(0x10_0000, 4096),
  bzImage: new Uint8Array(4096),
  initrd: new Uint8Array(5000),
  commandLine: "quiet",
};

Deno.test("bootBlobs() puts the kernel, its parameters and its files where they do not overlap", () => {
  const memorySize = 4 << 20;
  const { entry, blobs } = bootBlobs(image, memorySize);
  assertEquals(entry, 0x10_0010);
  const sorted = blobs.toSorted((a, b) => a.address - b.address);
  let end = 0;
  for (const { address, bytes } of sorted) {
    assert(address >= end);
    end = address + bytes.length;
  }
  assert(end <= memorySize);
  const initrd = sorted.at(-1)!;
  assertEquals([initrd.address % 4096, initrd.bytes.length], [0, 5000]);
});

Deno.test("bootBlobs() refuses what cannot boot", () => {
  assertThrows(
    () => bootBlobs(image, 0x10_1000),
    TypeError,
    "need more than 1052672 bytes of memory",
  );
  const other = image.vmlinux.slice();
  other[18] = 62;
  for (const vmlinux of [other, other.slice(0, 51), new Uint8Array(0)]) {
    assertThrows(
      () => bootBlobs({ ...image, vmlinux }, 4 << 20),
      TypeError,
      "the kernel is no ELF file for i386",
    );
  }
});

Deno.test("bootRom() has the processor's first instruction 16 bytes before its end", () => {
  const rom = bootRom(0x100_0000);
  assertEquals(rom.length, 128);
  // jmp, back to the first byte.
  assertEquals(rom[112], 0xeb);
  assertEquals(114 + (rom[113]! << 24 >> 24), 0);
});

Deno.test("compressedKernel() refuses what is no bzImage", () => {
  for (const size of [0, 511, 4096]) {
    assertThrows(
      () => compressedKernel(new Uint8Array(size)),
      TypeError,
      "no bzImage",
    );
  }
});
