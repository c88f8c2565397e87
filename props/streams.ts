/** What was read of a stream. */
export type Digest = {
  /** Bytes. */
  bytes: number;
  /** SHA-256 of them, as hexadecimal digits. */
  sha256: string;
  /** Name of the error that ended it, where it was not the end of file. */
  error?: string;
};

/** UTF-8 of `words`. */
export function text(words: string): Uint8Array {
  return new TextEncoder().encode(words);
}

/** Writes all of `bytes`. */
export async function write(
  conn: Deno.Conn,
  bytes: Uint8Array,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await conn.write(bytes.subarray(done));
  }
}

/** Reads exactly `length` bytes; fewer where the stream ends before. */
export async function readExactly(
  conn: Deno.Conn,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const got = await conn.read(bytes.subarray(done));
    if (got === null) break;
    done += got;
  }
  return bytes.subarray(0, done);
}

/** Reads up to a newline, byte by byte; the line without it, or what there was before the end. */
export async function readLine(conn: Deno.Conn): Promise<string> {
  let line = "";
  const byte = new Uint8Array(1);
  while (await conn.read(byte) !== null) {
    if (byte[0] === 10) return line;
    line += String.fromCharCode(byte[0]!);
  }
  return line;
}

/** Reads to the end of file, or an error, and takes the digest of all. */
export async function readAll(conn: Deno.Conn): Promise<Digest> {
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  let error: string | undefined;
  for (;;) {
    const chunk = new Uint8Array(65_536);
    try {
      const got = await conn.read(chunk);
      if (got === null) break;
      chunks.push(chunk.subarray(0, got));
      bytes += got;
    } catch (thrown) {
      error = (thrown as Error).name;
      break;
    }
  }
  const all = new Uint8Array(bytes);
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return {
    bytes,
    sha256: await sha256(all),
    ...(error === undefined ? {} : { error }),
  };
}

/** SHA-256 as hexadecimal digits. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/** Random bytes. */
export function randomBytes(length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 65_536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65_536));
  }
  return bytes;
}

/** Rejects when `promise` takes longer than it may. */
export async function within<T>(
  ms: number,
  what: string,
  promise: Promise<T>,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`${what} took more than ${ms} ms`)),
      ms,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
