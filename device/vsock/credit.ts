/**
 * Packets that the guest may have unread at most, whatever their size.
 *
 * Linux since 6.17 counts the memory that a packet occupies, not only its payload, against the
 * socket's buffer, and drops the connection at some 455 small packets in 256 KiB.
 */
export const MAX_UNREAD_PACKETS = 256;

// One small packet occupies under 1 KiB of a guest's socket buffer.
const PACKET_COST_SHIFT = 10;

/** A {@link Credit} as plain data. */
export type CreditState = {
  fwdCnt: number;
  toldFwdCnt: number;
  rxCnt: number;
  txCnt: number;
  peerBufAlloc: number;
  peerFwdCnt: number;
  /** `txCnt` after each packet that the guest has not read, oldest first. */
  unread: number[];
};

/**
 * Flow control of one connection, both ways (virtio 1.4, 5.10.6.3). All counters are u32 and wrap.
 *
 * *From the guest*: `bufAlloc` is what we advertise, `fwdCnt` what has left our buffer. *To the
 * guest*: `txCnt` counts what we sent; the guest's headers tell `peerBufAlloc` and `peerFwdCnt`.
 */
export class Credit {
  /** Bytes of buffer that we advertise. */
  readonly bufAlloc: number;
  /** Bytes from the guest that have left our buffer. */
  fwdCnt = 0;
  /** `fwdCnt` as the guest last heard it. */
  toldFwdCnt = 0;
  /** Bytes that the guest has sent. */
  rxCnt = 0;
  /** Bytes that we have sent. */
  txCnt = 0;
  /** The guest's buffer in bytes, as it last said. */
  peerBufAlloc = 0;
  /** Bytes that the guest has read, as it last said. */
  peerFwdCnt = 0;

  // txCnt after each packet that the guest has not read yet: a ring of at most MAX_UNREAD_PACKETS.
  #marks: Uint32Array | null = null;
  #firstMark = 0;
  #markCount = 0;

  /** Starts at zero with `bufAlloc` bytes advertised. */
  constructor(bufAlloc: number) {
    this.bufAlloc = bufAlloc;
  }

  /** Packets sent that the guest has not read, as far as it told. */
  get unreadPackets(): number {
    return this.#markCount;
  }

  /** Takes what a header from the guest says. */
  hear(bufAlloc: number, fwdCnt: number): void {
    this.peerBufAlloc = bufAlloc;
    this.peerFwdCnt = fwdCnt;
    const marks = this.#marks;
    if (marks === null) return;
    while (
      this.#markCount > 0 && ((fwdCnt - marks[this.#firstMark]!) | 0) >= 0
    ) {
      this.#firstMark = (this.#firstMark + 1) % MAX_UNREAD_PACKETS;
      this.#markCount--;
    }
  }

  /** Bytes that the guest can take now; 0 also where it has too many packets unread. */
  get peerFree(): number {
    const unread = (this.txCnt - this.peerFwdCnt) >>> 0;
    if (unread >= this.peerBufAlloc || this.packetsFree === 0) return 0;
    return this.peerBufAlloc - unread;
  }

  /** Bytes that the guest can take now, whatever the packets. */
  get bytesFree(): number {
    const unread = (this.txCnt - this.peerFwdCnt) >>> 0;
    return unread >= this.peerBufAlloc ? 0 : this.peerBufAlloc - unread;
  }

  /** Longest message that the guest can take, and that we keep for it: as Linux, no more than our own. */
  get maxMessageBytes(): number {
    return this.peerBufAlloc < this.bufAlloc
      ? this.peerBufAlloc
      : this.bufAlloc;
  }

  /** Packets that the guest can take now. */
  get packetsFree(): number {
    let limit = this.peerBufAlloc >>> PACKET_COST_SHIFT;
    limit = limit < 1
      ? 1
      : limit > MAX_UNREAD_PACKETS
      ? MAX_UNREAD_PACKETS
      : limit;
    const free = limit - this.#markCount;
    return free > 0 ? free : 0;
  }

  /** Counts a packet of `length` bytes to the guest; there must have been room for it. */
  sent(length: number): void {
    this.txCnt = (this.txCnt + length) >>> 0;
    const marks = this.#marks ??= new Uint32Array(MAX_UNREAD_PACKETS);
    // A message may take more packets than there are marks; its last ones share one.
    if (this.#markCount < MAX_UNREAD_PACKETS) this.#markCount++;
    marks[(this.#firstMark + this.#markCount - 1) % MAX_UNREAD_PACKETS] =
      this.txCnt;
  }

  /** Counts a packet from the guest; false where it sent more than we had room for. */
  received(length: number): boolean {
    const buffered = (this.rxCnt - this.fwdCnt) >>> 0;
    if (length > this.bufAlloc - buffered) return false;
    this.rxCnt = (this.rxCnt + length) >>> 0;
    return true;
  }

  /** Counts bytes that have left our buffer. */
  forwarded(length: number): void {
    this.fwdCnt = (this.fwdCnt + length) >>> 0;
  }

  /**
   * Tells whether the guest should hear of our free space without having asked.
   *
   * A quarter of the window: late enough that data going the other way mostly carries it, early
   * enough that the guest does not run dry. Guests limit themselves to the smaller of the two
   * buffers, so the window is that.
   */
  get updateDue(): boolean {
    const window = this.peerBufAlloc < this.bufAlloc
      ? this.peerBufAlloc
      : this.bufAlloc;
    const untold = (this.fwdCnt - this.toldFwdCnt) >>> 0;
    return untold > 0 && untold >= window >>> 2;
  }

  /** Its state as plain data. */
  save(): CreditState {
    const unread: number[] = [];
    for (let i = 0; i < this.#markCount; i++) {
      unread.push(this.#marks![(this.#firstMark + i) % MAX_UNREAD_PACKETS]!);
    }
    const { fwdCnt, toldFwdCnt, rxCnt, txCnt, peerBufAlloc, peerFwdCnt } = this;
    return {
      fwdCnt,
      toldFwdCnt,
      rxCnt,
      txCnt,
      peerBufAlloc,
      peerFwdCnt,
      unread,
    };
  }

  /** Goes on from a state that was checked. */
  restore(state: CreditState): void {
    this.fwdCnt = state.fwdCnt;
    this.toldFwdCnt = state.toldFwdCnt;
    this.rxCnt = state.rxCnt;
    this.txCnt = state.txCnt;
    this.peerBufAlloc = state.peerBufAlloc;
    this.peerFwdCnt = state.peerFwdCnt;
    this.#firstMark = 0;
    this.#markCount = state.unread.length;
    if (state.unread.length > 0) {
      this.#marks ??= new Uint32Array(MAX_UNREAD_PACKETS);
      this.#marks.set(state.unread);
    }
  }
}
