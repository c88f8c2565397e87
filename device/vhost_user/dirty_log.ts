import type { WriteLog } from "../logged_queue.ts";

/** Bytes of a page in the log. */
export const VHOST_LOG_PAGE = 0x1000;

/**
 * The log of dirty pages of a live migration ("Migration"): one bit for each 4096 bytes of guest
 * memory, page 0 in bit 0 of byte 0.
 *
 * The front-end takes bits out while this side puts them in. A bit is therefore set by an atomic
 * operation, always (one that is seen set may be on its way out), and after the bytes that it stands
 * for were written: the other way round the front-end could copy the page in between.
 */
export class DirtyLog implements WriteLog {
  /** Pages that lay beyond the end of the log, so that nothing could be said of them. */
  pagesBeyond = 0;

  #bytes: Uint8Array;

  /** Makes a log over `bytes`, which stay the caller's. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  /** Goes on in `bytes`; what was logged before stays where it is. */
  moveTo(bytes: Uint8Array): void {
    this.#bytes = bytes;
  }

  /**
   * Marks the pages of `length` bytes at guest address `address`, which were written. Both are whole
   * numbers from 0 to 2^53.
   */
  mark(address: number, length: number): void {
    if (length === 0) return;
    const bytes = this.#bytes;
    const last = Math.floor((address + length - 1) / VHOST_LOG_PAGE);
    for (
      let page = Math.floor(address / VHOST_LOG_PAGE);
      page <= last;
      page++
    ) {
      const at = Math.floor(page / 8);
      if (at >= bytes.length) {
        this.pagesBeyond += last - page + 1;
        return;
      }
      Atomics.or(bytes, at, 1 << (page % 8));
    }
  }
}
