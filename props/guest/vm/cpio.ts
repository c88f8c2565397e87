/**
 * A writer of cpio archives in the "newc" format, as the Linux kernel unpacks them
 * for its initial file system (Documentation/driver-api/early-userspace).
 *
 * @module
 */

const TRAILER = "TRAILER!!!";
const ALIGNMENT = 4;
const HEADER_BYTES = 110;

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

/**
 * Collects entries and gives them back as one archive. Archives may be written one
 * after the other: the kernel unpacks each.
 *
 * Parent folders are added on their own; an entry of the same name is added once.
 */
export class CpioWriter {
  #parts: Uint8Array<ArrayBuffer>[] = [];
  #bytes = 0;
  #inode = 1;
  #names: Set<string> = new Set<string>();

  /** Bytes that {@linkcode CpioWriter.finish} will give, less the trailer. */
  get size(): number {
    return this.#bytes;
  }

  /** True if there is an entry of this path. */
  has(path: string): boolean {
    return this.#names.has(nameOf(path));
  }

  /**
   * Adds a folder, and those above it.
   *
   * @param path Absolute or relative path in the archive.
   * @param mode Permission bits.
   */
  directory(path: string, mode = 0o755): void {
    const name = nameOf(path);
    if (name === "" || this.#names.has(name)) return;
    this.#parents(name);
    this.#entry(name, S_IFDIR | mode, new Uint8Array(0), 0);
  }

  /**
   * Adds a regular file.
   *
   * @param path Absolute or relative path in the archive.
   * @param content Its bytes; not copied, must stay unchanged until finish().
   * @param mode Permission bits.
   * @param mtimeSeconds Its time of last change, seconds since 1970.
   */
  file(
    path: string,
    content: Uint8Array<ArrayBuffer>,
    mode = 0o644,
    mtimeSeconds = 0,
  ): void {
    const name = nameOf(path);
    if (this.#names.has(name)) return;
    this.#parents(name);
    this.#entry(name, S_IFREG | mode, content, mtimeSeconds);
  }

  /**
   * Adds a symbolic link.
   *
   * @param path Absolute or relative path in the archive.
   * @param target What it points at.
   */
  symlink(path: string, target: string): void {
    const name = nameOf(path);
    if (this.#names.has(name)) return;
    this.#parents(name);
    this.#entry(name, S_IFLNK | 0o777, new TextEncoder().encode(target), 0);
  }

  /** The whole archive; the writer is empty afterwards. */
  finish(): Uint8Array<ArrayBuffer> {
    this.#entry(TRAILER, 0, new Uint8Array(0), 0);
    const archive = new Uint8Array(this.#bytes);
    let offset = 0;
    for (const part of this.#parts) {
      archive.set(part, offset);
      offset += part.byteLength;
    }
    this.#parts = [];
    this.#bytes = 0;
    this.#names.clear();
    return archive;
  }

  #parents(name: string): void {
    const slash = name.lastIndexOf("/");
    if (slash > 0) this.directory(name.slice(0, slash));
  }

  #entry(
    name: string,
    mode: number,
    content: Uint8Array<ArrayBuffer>,
    mtimeSeconds: number,
  ): void {
    this.#names.add(name);
    const encoded = new TextEncoder().encode(`${name}\0`);
    const links = (mode & S_IFDIR) === S_IFDIR ? 2 : 1;
    const fields = [
      name === TRAILER ? 0 : this.#inode++,
      mode,
      0, // uid
      0, // gid
      links,
      Math.floor(mtimeSeconds),
      content.byteLength,
      0, // major and minor of the device that holds the file
      0,
      0, // major and minor of the device that the file is
      0,
      encoded.byteLength,
      0, // checksum, unused in this format
    ];
    const header = "070701" +
      fields.map((field) => field.toString(16).toUpperCase().padStart(8, "0"))
        .join("");
    const head = new Uint8Array(aligned(HEADER_BYTES + encoded.byteLength));
    head.set(new TextEncoder().encode(header));
    head.set(encoded, HEADER_BYTES);
    this.#push(head);
    this.#push(content);
    const padding = aligned(content.byteLength) - content.byteLength;
    if (padding > 0) this.#push(new Uint8Array(padding));
  }

  #push(part: Uint8Array<ArrayBuffer>): void {
    this.#parts.push(part);
    this.#bytes += part.byteLength;
  }
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

/** The name as archives hold it: no leading slash, no `.` and no doubled slash. */
function nameOf(path: string): string {
  return path.split("/").filter((part) => part !== "" && part !== ".").join(
    "/",
  );
}
