import { assertEquals, assertLessOrEqual } from "@std/assert";
import { Chain } from "../../ring/chain.ts";
import { GuestMemory } from "../../ring/memory.ts";
import { Diagnostics } from "../diagnostics.ts";
import {
  CID,
  Guest,
  Host,
  ops,
  packetBytes,
  REQUEST,
  RST,
  RW,
} from "./_fixture.ts";
import type { ConnectAnswer } from "./host.ts";
import { Muxer } from "./muxer.ts";

Deno.test("Muxer keeps no more ended connections than it can have", () => {
  const buffer = new ArrayBuffer(4096);
  const memory = new GuestMemory([{ guestAddress: 0, size: 4096, buffer }]);
  const host = new Host();
  const maxConnections = 8;
  const muxer = new Muxer(memory, {
    guestCid: CID,
    host,
    diagnostics: new Diagnostics(),
    bufAlloc: 4096,
    maxConnections,
    now: () => 0,
  });
  const chain = new Chain(memory);
  const receive = (op: number, srcPort: number, dstPort: number): void => {
    memory.bytes(0, 44).set(packetBytes({ op, srcPort, dstPort }, []));
    chain.clear();
    chain.append(0, 44, false);
    muxer.receive(chain);
  };
  receive(REQUEST, 5, 1234);
  for (let i = 0; i < 1000; i++) {
    // One that is accepted and one that is refused, neither of which hears of it.
    receive(REQUEST, 6, 1234);
    receive(RST, 6, 1234);
    receive(REQUEST, 6, 99);
    receive(RST, 6, 99);
    assertEquals(muxer.connectionCount, 1);
    assertLessOrEqual(muxer.waiting, 2 * maxConnections);
  }
  receive(RST, 5, 1234);
  assertEquals([muxer.connectionCount, host.streams.length], [0, 1001]);
});

Deno.test("Muxer gathers for more connections than it has lists", () => {
  const buffer = new ArrayBuffer(65536);
  const memory = new GuestMemory([{ guestAddress: 0, size: 65536, buffer }]);
  const host = new Host();
  const muxer = new Muxer(memory, {
    guestCid: CID,
    host,
    diagnostics: new Diagnostics(),
    bufAlloc: 4096,
    maxConnections: 100,
    now: () => 0,
  });
  const chain = new Chain(memory);
  let at = 0;
  const receive = (op: number, srcPort: number, payload: number[]): void => {
    const bytes = packetBytes({ op, srcPort, len: payload.length }, payload);
    memory.bytes(at, bytes.length).set(bytes);
    chain.clear();
    chain.append(at, bytes.length, false);
    muxer.receive(chain);
    at += 64;
  };
  const ports = Array.from({ length: 100 }, (_, i) => 100 + i);
  for (const port of ports) receive(REQUEST, port, []);
  const expected = new Map<number, number[]>();
  for (let round = 0; round < 3; round++) {
    at = 0;
    for (const port of ports) {
      // Some send twice, at once or after others.
      for (const to of port % 7 === 0 ? [port, port, port - 3] : [port]) {
        receive(RW, to, [to, round, at & 0xff]);
        const bytes = expected.get(to) ?? [];
        expected.set(to, [...bytes, to, round, (at - 64) & 0xff]);
      }
    }
    muxer.flush();
  }
  for (const [i, port] of ports.entries()) {
    assertEquals(host.streams[i]!.written, expected.get(port), `port ${port}`);
  }
});

Deno.test("Muxer.abandonAll() takes a connection that is made in answer to it", () => {
  const guest = new Guest("split");
  guest.post();
  const reasons: string[] = [];
  const answer: ConnectAnswer = {
    accepted: () => {
      throw new Error("accepted");
    },
    refused: (reason) => {
      if (reasons.push(reason) === 1) guest.vsock.connect(81, answer);
    },
  };
  guest.vsock.connect(80, answer);
  assertEquals(ops(guest.run()), [REQUEST]);
  guest.vsock.transportReset();
  const again = guest.run();
  assertEquals([again.length, again[0]?.op, again[0]?.dstPort], [
    1,
    REQUEST,
    81,
  ]);
  assertEquals(reasons, ["the guest is gone"]);
});
