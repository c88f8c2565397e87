/**
 * The dirty log from the front-end's side: a migration's copy of guest memory is made of what the log
 * tells, over a real device, its socket and its shared memory.
 */
import { assert, assertEquals } from "@std/assert";
import { createMemfd, duplicateFd, Mapping } from "../device/host/mmap.ts";
import { closeFd } from "../device/host/socket.ts";
import {
  VHOST_F_LOG_ALL,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_REPLY_ACK,
  VHOST_USER_SET_FEATURES,
  VHOST_USER_SET_LOG_BASE,
} from "../device/vhost_user/constants.ts";
import {
  encodeLog,
  encodeU64,
  parseU64,
} from "../device/vhost_user/message.ts";
import { featureMask } from "../device/virtio_device.ts";
import { Rig } from "./front_end_rig.ts";
import { write } from "./streams.ts";

const PAGE = 4096;
/** Where the log begins in its file: not at a page's start. */
const LOG_OFFSET = 0x1238;
const ROUNDS = 20;
const ROUND_BYTES = 300_000;

for (const ring of ["split", "packed"] as const) {
  Deno.test(`Device logs all pages of received bytes for a front-end that migrates (${ring})`, async () => {
    await using rig = await Rig.start({
      ring,
      protocolFeatures: [
        VHOST_USER_PROTOCOL_F_MQ,
        VHOST_USER_PROTOCOL_F_CONFIG,
        VHOST_USER_PROTOCOL_F_REPLY_ACK,
        VHOST_USER_PROTOCOL_F_LOG_SHMFD,
      ],
    });
    const { front } = rig;
    assert((front.offeredFeatures & featureMask(VHOST_F_LOG_ALL)) !== 0n);
    const end = front.regions.map(({ guestAddress, size }) =>
      guestAddress + size
    ).reduce((a, b) => Math.max(a, b));
    const logBytes = end / PAGE / 8;
    const fd = createMemfd(LOG_OFFSET + logBytes);
    using mapping = disposable(
      new Mapping(duplicateFd(fd), logBytes, LOG_OFFSET),
    );
    const log = new Uint8Array(mapping.buffer);

    const { near, far } = await rig.fromHost(80);
    const reply = front.channel.ask(
      VHOST_USER_SET_LOG_BASE,
      encodeLog({ size: logBytes, offset: LOG_OFFSET }),
      [fd],
    );
    closeFd(fd);
    assertEquals(parseU64(reply), 0);
    const features = front.features | featureMask(VHOST_F_LOG_ALL);
    front.tell(VHOST_USER_SET_FEATURES, encodeU64(features));
    log.fill(0);

    const marked = new Set<number>();
    for (let round = 1; round <= ROUNDS; round++) {
      // A byte that nothing else fills memory with, another one each round.
      const sent = new Uint8Array(ROUND_BYTES).fill(0x80 + round);
      const [got] = await Promise.all([
        rig.readNear(near, sent.length),
        write(far, sent),
      ]);
      assertEquals(got, sent);
      const pages = takePages(log);
      const filled: number[] = [];
      for (const { guestAddress, bytes } of front.memory.regions) {
        for (let at = 0; at < bytes.length; at += PAGE) {
          const page = bytes.subarray(at, at + PAGE);
          if (page.indexOf(0x80 + round) >= 0 && runOf(page, 0x80 + round)) {
            filled.push((guestAddress + at) / PAGE);
          }
        }
      }
      assert(filled.length >= 50, `${filled.length} pages`);
      assertEquals(
        filled.filter((page) => !pages.has(page)),
        [],
        `pages that were written in round ${round} and not logged`,
      );
      for (const page of pages) marked.add(page);
    }
    const memoryPages = front.regions.reduce(
      (sum, { size }) => sum + size / PAGE,
      0,
    );
    assert(marked.size < memoryPages / 8, `${marked.size} pages are logged`);

    // The migration is over, or was cancelled: the guest goes on, and nothing is logged.
    front.tell(VHOST_USER_SET_FEATURES, encodeU64(front.features));
    log.fill(0);
    await rig.echo();
    assertEquals(takePages(log).size, 0);
    assertEquals(near.state, "connected");
    far.close();
  });
}

/** Takes all pages out of the log as a front-end does, word by word. */
function takePages(log: Uint8Array): Set<number> {
  const pages = new Set<number>();
  for (let at = 0; at < log.length; at++) {
    if (log[at] === 0) continue;
    const byte = Atomics.exchange(log, at, 0);
    for (let bit = 0; bit < 8; bit++) {
      if ((byte >> bit & 1) === 1) pages.add(at * 8 + bit);
    }
  }
  return pages;
}

/** Whether 16 bytes in a row have the value. */
function runOf(bytes: Uint8Array, value: number): boolean {
  let run = 0;
  for (const byte of bytes) {
    run = byte === value ? run + 1 : 0;
    if (run === 16) return true;
  }
  return false;
}

function disposable(mapping: Mapping): Mapping & Disposable {
  return Object.assign(mapping, { [Symbol.dispose]: () => mapping.release() });
}
