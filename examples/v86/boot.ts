/**
 * Starts a Linux kernel for i386 without a BIOS: by the 32-bit boot protocol (the kernel's
 * Documentation/arch/x86/boot.rst), from a ROM of 128 bytes.
 *
 * Works in a browser.
 *
 * @module
 */

/** A kernel to boot. */
export type KernelImage = {
  /** The kernel as an ELF file, unpacked from the bzImage. */
  vmlinux: Uint8Array<ArrayBuffer>;
  /** The first 4096 bytes or more of the bzImage, which hold the setup header. */
  bzImage: Uint8Array<ArrayBuffer>;
  /** A cpio archive. */
  initrd: Uint8Array<ArrayBuffer>;
  /** Parameters. */
  commandLine: string;
};

/** Bytes that stand in memory before the processor starts. */
export type Blob = { address: number; bytes: Uint8Array<ArrayBuffer> };

const BOOT_PARAMS = 0x1_0000;
const COMMAND_LINE = 0x1_1000;
const PAGE = 4096;
const LOW_MEMORY_END = 0x9_fc00;
const HIGH_MEMORY = 0x10_0000;
/** Size of the ROM, which ends below 1 MiB. */
const ROM_SIZE = 128;
const ROM = HIGH_MEMORY - ROM_SIZE;
/** Places in the ROM. */
const GDT = 0x40;
const GDT_POINTER = 0x60;
const RESET_VECTOR = 0x70;

// Fields of struct boot_params and its setup header.
const E820_ENTRIES = 0x1e8;
const SETUP_HEADER = 0x1f1;
const JUMP_LENGTH = 0x201;
const TYPE_OF_LOADER = 0x210;
const LOADFLAGS = 0x211;
const RAMDISK_IMAGE = 0x218;
const RAMDISK_SIZE = 0x21c;
const CMD_LINE_PTR = 0x228;
const E820_TABLE = 0x2d0;
const E820_RAM = 1;

/**
 * The ROM: enters protected mode with flat segments and jumps to the kernel.
 *
 * @param entry Physical address of the kernel's first instruction.
 */
export function bootRom(entry: number): Uint8Array<ArrayBuffer> {
  const rom = new Uint8Array(ROM_SIZE);
  const view = new DataView(rom.buffer);
  const enter32 = ROM + 24;
  // deno-fmt-ignore
  const code = [
    0xfa,                                                   // cli
    0x2e, 0x66, 0x0f, 0x01, 0x16, ...le16(ROM + GDT_POINTER), // o32 lgdt cs:[..]
    0x0f, 0x20, 0xc0,                                       // mov eax, cr0
    0x0c, 0x01,                                             // or al, 1
    0x0f, 0x22, 0xc0,                                       // mov cr0, eax
    0x66, 0xea, ...le32(enter32), 0x10, 0x00,               // jmp 0x10:enter32
    0xb8, ...le32(0x18),                                    // mov eax, 0x18
    0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,                     // mov ds, es, ss
    0xbe, ...le32(BOOT_PARAMS),                             // mov esi, boot_params
    0x31, 0xed, 0x31, 0xff, 0x31, 0xdb,                     // xor ebp, edi, ebx
    0xb8, ...le32(entry), 0xff, 0xe0,                       // jmp entry
  ];
  rom.set(code);
  // Flat segments of 4 GiB: code is 0x10, data 0x18.
  rom.set([0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0], GDT + 0x10);
  rom.set([0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0], GDT + 0x18);
  view.setUint16(GDT_POINTER, 0x1f, true);
  view.setUint32(GDT_POINTER + 2, ROM + GDT, true);
  // Where the processor starts: jmp to the first byte.
  rom.set([0xeb, 0x100 - RESET_VECTOR - 2], RESET_VECTOR);
  return rom;
}

function le16(value: number): number[] {
  return [value & 0xff, value >> 8 & 0xff];
}

function le32(value: number): number[] {
  return [...le16(value), ...le16(value >>> 16)];
}

/**
 * What stands where in the memory of a machine that boots `image`; the ROM not included.
 *
 * @param image The kernel.
 * @param memorySize Bytes of memory, from address 0 on.
 * @throws {TypeError} when the kernel is none for i386, or does not fit.
 */
export function bootBlobs(
  image: KernelImage,
  memorySize: number,
): { entry: number; blobs: Blob[] } {
  const { entry, blobs } = loadElf(image.vmlinux);
  const { initrd } = image;
  const initrdAddress = memorySize - Math.ceil(initrd.length / PAGE) * PAGE;
  const kernelEnd = Math.max(
    ...blobs.map(({ address, bytes }) => address + bytes.length),
  );
  if (initrdAddress < kernelEnd) {
    throw new TypeError(
      `Cannot boot: kernel and initial file system need more than ${memorySize} bytes of memory`,
    );
  }
  const commandLine = new TextEncoder().encode(`${image.commandLine}\0`);
  const params = new Uint8Array(PAGE);
  const view = new DataView(params.buffer);
  const headerEnd = JUMP_LENGTH + 1 + image.bzImage[JUMP_LENGTH]!;
  params.set(image.bzImage.subarray(SETUP_HEADER, headerEnd), SETUP_HEADER);
  params[TYPE_OF_LOADER] = 0xff;
  params[LOADFLAGS] = 1;
  view.setUint32(RAMDISK_IMAGE, initrdAddress, true);
  view.setUint32(RAMDISK_SIZE, initrd.length, true);
  view.setUint32(CMD_LINE_PTR, COMMAND_LINE, true);
  const ranges = [[0, LOW_MEMORY_END], [HIGH_MEMORY, memorySize]] as const;
  params[E820_ENTRIES] = ranges.length;
  for (const [i, [start, end]] of ranges.entries()) {
    const at = E820_TABLE + 20 * i;
    view.setUint32(at, start, true);
    view.setUint32(at + 8, end - start, true);
    view.setUint32(at + 16, E820_RAM, true);
  }
  blobs.push(
    { address: BOOT_PARAMS, bytes: params },
    { address: COMMAND_LINE, bytes: commandLine },
    { address: initrdAddress, bytes: initrd },
  );
  return { entry, blobs };
}

/** The segments of an ELF file for i386, at their physical addresses. */
function loadElf(
  file: Uint8Array<ArrayBuffer>,
): { entry: number; blobs: Blob[] } {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  if (
    file.length < 52 || view.getUint32(0, false) !== 0x7f454c46 ||
    file[4] !== 1 || view.getUint16(18, true) !== 3
  ) {
    throw new TypeError("Cannot boot: the kernel is no ELF file for i386");
  }
  const blobs: Blob[] = [];
  const table = view.getUint32(28, true);
  for (let i = 0; i < view.getUint16(44, true); i++) {
    const at = table + 32 * i;
    if (view.getUint32(at, true) !== 1) continue; // PT_LOAD
    const offset = view.getUint32(at + 4, true);
    const size = view.getUint32(at + 16, true);
    blobs.push({
      address: view.getUint32(at + 12, true),
      bytes: file.subarray(offset, offset + size),
    });
  }
  return { entry: view.getUint32(24, true), blobs };
}

/**
 * The kernel in a bzImage, still compressed.
 *
 * @throws {TypeError} when it is no bzImage of a protocol that tells (2.08 and later).
 */
export function compressedKernel(
  bzImage: Uint8Array<ArrayBuffer>,
): Uint8Array<ArrayBuffer> {
  const view = new DataView(
    bzImage.buffer,
    bzImage.byteOffset,
    bzImage.length,
  );
  if (
    bzImage.length < 0x260 || view.getUint32(0x202, false) !== 0x48647253 ||
    view.getUint16(0x206, true) < 0x208
  ) {
    throw new TypeError("Cannot boot: the kernel's image is no bzImage");
  }
  const setup = (1 + (bzImage[SETUP_HEADER] || 4)) * 512;
  const start = setup + view.getUint32(0x248, true);
  return bzImage.subarray(start, start + view.getUint32(0x24c, true));
}
