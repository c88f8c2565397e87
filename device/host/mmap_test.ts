import { assert, assertEquals, assertThrows } from "@std/assert";
import { SystemError } from "./errno.ts";
import { libc } from "./ffi.ts";
import { createMemfd, duplicateFd, Mapping, resizeFile } from "./mmap.ts";

libc(); // Opened here, because a library opened inside a test counts as a leak.

function openDescriptors(): number {
  return [...Deno.readDirSync("/proc/self/fd")].length;
}

/** A descriptor of a file on disk, which takes no seals. */
function diskFile(path: string, size: number): number {
  Deno.writeFileSync(path, new Uint8Array(size));
  return open(path);
}

function open(path: string): number {
  const file = Deno.openSync(path, { read: true, write: true });
  // Deno does not tell its descriptor: it is the one that leads to the path.
  try {
    for (const entry of Deno.readDirSync("/proc/self/fd")) {
      try {
        if (Deno.readLinkSync(`/proc/self/fd/${entry.name}`) === path) {
          return duplicateFd(Number(entry.name));
        }
      } catch {
        // The descriptor of the listing itself.
      }
    }
    throw new Error(`Cannot find the descriptor of ${path}`);
  } finally {
    file.close();
  }
}

Deno.test("Mapping shares its bytes with every mapping of the file, at any offset", () => {
  const fd = createMemfd(3 * 4096);
  const whole = new Mapping(duplicateFd(fd), 3 * 4096, 0);
  const part = new Mapping(duplicateFd(fd), 100, 5000);
  try {
    assertEquals(part.buffer.byteLength, 100);
    assertEquals(part.hostAddress % 4096, 5000 % 4096);
    new Uint8Array(whole.buffer)[5003] = 77;
    assertEquals(new Uint8Array(part.buffer)[3], 77);
    new Uint32Array(part.buffer)[0] = 0x01020304;
    assertEquals([...new Uint8Array(whole.buffer, 5000, 4)], [4, 3, 2, 1]);
    assertEquals(Atomics.add(new Int32Array(part.buffer), 0, 1), 0x01020304);
    assertEquals(new Uint8Array(whole.buffer)[5000], 5);
  } finally {
    whole.release();
    part.release();
    libc().close(fd);
  }
});

Deno.test("Mapping.release() detaches the buffer and closes every descriptor", () => {
  const before = openDescriptors();
  const mapping = new Mapping(createMemfd(8192), 8192, 0);
  const unsealed = new Mapping(createMemfd(8192, { sealable: false }), 8192, 0);
  const view = new Uint8Array(mapping.buffer);
  view[0] = 1;
  mapping.release();
  unsealed.release();
  assertEquals(view.length, 0);
  assertEquals(view[0], undefined);
  assertThrows(() => new Uint8Array(mapping.buffer), TypeError);
  assert(!mapping.intact());
  mapping.release();
  assertEquals(openDescriptors(), before);
});

Deno.test("Mapping refuses a file that is too short and closes the descriptor", () => {
  const before = openDescriptors();
  for (
    const [size, offset] of [
      [4097, 0],
      [4096, 1],
      [1, 4096],
      [0, 0],
      [
        4096,
        2 ** 53,
      ],
      [2 ** 60, 0],
      [-1, 0],
    ] as const
  ) {
    assertThrows(
      () => new Mapping(createMemfd(4096), size, offset),
      RangeError,
      "Cannot map",
    );
  }
  assertEquals(openDescriptors(), before);
});

Deno.test("Mapping refuses a descriptor that is no file", () => {
  const c = libc();
  assertThrows(
    () => new Mapping(c.eventfd(0, 0), 4096, 0),
    RangeError,
    "it has 0",
  );
  assertThrows(() => new Mapping(9999, 4096, 0), SystemError, "EBADF");
});

Deno.test("Mapping seals a memfd, so that its owner cannot shrink it", () => {
  const fd = createMemfd(8192);
  const mapping = new Mapping(duplicateFd(fd), 8192, 0);
  try {
    assert(mapping.sealed);
    const error = assertThrows(() => resizeFile(fd, 0), SystemError);
    assertEquals((error as SystemError).code, "EPERM");
    new Uint8Array(mapping.buffer)[8191] = 1; // would raise SIGBUS
    resizeFile(fd, 16384); // growing does no harm
    assert(mapping.intact());
  } finally {
    mapping.release();
    libc().close(fd);
  }
});

Deno.test("Mapping.intact() sees that a file without seals has shrunk", async () => {
  const dir = await Deno.makeTempDir();
  const files = [
    createMemfd(8192, { sealable: false }),
    diskFile(`${dir}/file`, 8192),
  ];
  for (const fd of files) {
    const mapping = new Mapping(duplicateFd(fd), 4096, 4096);
    assert(!mapping.sealed);
    assert(mapping.intact());
    resizeFile(fd, 8191);
    assert(!mapping.intact());
    mapping.release();
    libc().close(fd);
  }
  await Deno.remove(dir, { recursive: true });
});

Deno.test("Mapping accepts a memfd that its owner sealed, seals included", () => {
  const fd = createMemfd(4096);
  libc().fcntl(fd, 1033, 1 | 2 | 4); // SEAL, SHRINK, GROW, as QEMU does
  const mapping = new Mapping(fd, 4096, 0);
  assert(mapping.sealed);
  mapping.release();
});
