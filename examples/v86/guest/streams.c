/* Streams that run both ways without pause, and whose every byte is checked, until the host ends them.
 *
 *   streams CID PORT COUNT CHUNK [BYTES]
 *
 * Stream i goes over port PORT + i. The first half of them connect to CID, the others are connected to. A
 * write has up to CHUNK bytes. With BYTES it is the other end of another guest's streams: it connects where that
 * is connected to, and ends each stream when it has sent BYTES. When the peer has ended a stream, it is ended here too. At the end there is a
 * line for each: "stream I sent N received N wrong W error E", with W the bytes that were wrong, and
 * "streams done". The counts are modulo 2^32. */

#include "linux_i386.h"

enum { MAX_STREAMS = 32, MAX_CHUNK = 65536 };

struct stream {
  i32 fd;
  u32 sent, received, wrong, error, next_length;
  i32 open, ended, peer_ended;
};

static struct stream streams[MAX_STREAMS];
static struct pollfd polled[MAX_STREAMS];
static u32 words[MAX_CHUNK / 4 + 2];
static u8 bytes[MAX_CHUNK];

/* The bytes of a stream from position `at` on; the pattern is that of streams.ts. */
static const u8 *pattern(u32 seed, u32 at, u32 length) {
  u32 first = at >> 2, count = ((at & 3) + length + 3) >> 2;
  for (u32 i = 0; i < count; i++) {
    u32 x = ((first + i) ^ seed) * 0x9e3779b1u;
    x ^= x >> 15;
    words[i] = x * 0x85ebca6bu;
  }
  return (const u8 *)words + (at & 3);
}

/* 1 where this is the end that the host has otherwise. */
static u32 far_end, limit;

static u32 seed_of(u32 i, u32 to_host) { return (2 * i + to_host + 1) * 0x01000193u; }

static void finish(struct stream *s, i32 error) {
  if (error < 0) s->error = (u32)-error;
  sys(SYS_close, s->fd, 0, 0);
  s->open = 0;
}

static void receive(struct stream *s, u32 i) {
  i32 got = sys(SYS_read, s->fd, (i32)bytes, MAX_CHUNK);
  if (got == -EAGAIN || got == -EINTR) return;
  if (got < 0) {
    finish(s, got);
    return;
  }
  if (got == 0) {
    /* What was sent is counted; the peer reads up to our end. */
    s->peer_ended = 1;
    if (!s->ended) sys(SYS_shutdown, s->fd, SHUT_WR, 0);
    finish(s, 0);
    return;
  }
  const u8 *right = pattern(seed_of(i, far_end), s->received, (u32)got);
  for (i32 at = 0; at < got; at++) s->wrong += bytes[at] != right[at];
  s->received += (u32)got;
}

static void transmit(struct stream *s, u32 i, u32 chunk) {
  /* Writes of all lengths: small ones are packets of their own. */
  s->next_length = s->next_length * 1664525u + 1013904223u;
  u32 length = 1 + (s->next_length >> 8) % chunk;
  if (far_end && length > limit - s->sent) length = limit - s->sent;
  i32 done = sys(SYS_write, s->fd, (i32)pattern(seed_of(i, 1 - far_end), s->sent, length), (i32)length);
  if (done == -EAGAIN || done == -EINTR) return;
  if (done < 0) {
    finish(s, done);
    return;
  }
  s->sent += (u32)done;
  if (far_end && s->sent == limit) {
    sys(SYS_shutdown, s->fd, SHUT_WR, 0);
    s->ended = 1;
  }
}

/* Another guest may not listen yet. */
static i32 connect_soon(u32 cid, u32 port) {
  i32 fd = vsock_connect(cid, port);
  for (u32 i = 0; i < 400 && fd < 0 && cid > VMADDR_CID_HOST; i++) {
    sys(SYS_poll, 0, 0, 50);
    fd = vsock_connect(cid, port);
  }
  return fd;
}

static i32 fail(const char *what, i32 error) {
  text("streams: cannot ");
  text(what);
  text(": error ");
  number((u32)-error);
  end_line(1);
  return 1;
}

static i32 program(i32 argc, char **argv, char **environment) {
  (void)environment;
  u32 arguments[5] = {0};
  i32 ok = argc == 5 || argc == 6;
  for (i32 i = 0; ok && i + 1 < argc; i++) arguments[i] = parse(argv[i + 1], &ok);
  u32 cid = arguments[0], port = arguments[1], count = arguments[2], chunk = arguments[3];
  if (!ok || count < 1 || count > MAX_STREAMS || chunk < 1 || chunk > MAX_CHUNK) {
    put(1, "usage: streams CID PORT COUNT CHUNK [BYTES]\n");
    return 2;
  }
  i32 listeners[MAX_STREAMS];
  far_end = argc == 6;
  limit = arguments[4];
  /* Those from `first` to before `last` are connected to. */
  u32 half = (count + 1) / 2, first = far_end ? 0 : half, last = far_end ? half : count;
  for (u32 i = first; i < last; i++) {
    listeners[i] = vsock_listen(port + i);
    if (listeners[i] < 0) return fail("listen", listeners[i]);
  }
  for (u32 i = 0; i < count; i++) {
    if (i >= first && i < last) continue;
    streams[i].fd = connect_soon(cid, port + i);
    if (streams[i].fd < 0) return fail("connect", streams[i].fd);
  }
  text("streams listen");
  end_line(1);
  for (u32 i = first; i < last; i++) {
    streams[i].fd = sys4(SYS_accept4, listeners[i], 0, 0, 0);
    if (streams[i].fd < 0) return fail("accept", streams[i].fd);
    sys(SYS_close, listeners[i], 0, 0);
  }
  for (u32 i = 0; i < count; i++) {
    streams[i].open = 1;
    streams[i].next_length = i;
    sys(SYS_fcntl64, streams[i].fd, F_SETFL, O_NONBLOCK);
  }
  text("streams run");
  end_line(1);

  for (u32 left = count; left > 0;) {
    for (u32 i = 0; i < count; i++) {
      polled[i].fd = streams[i].open ? streams[i].fd : -1;
      polled[i].events = streams[i].ended ? POLLIN : POLLIN | POLLOUT;
    }
    i32 ready = sys(SYS_poll, (i32)polled, (i32)count, -1);
    if (ready < 0 && ready != -EINTR) return fail("wait", ready);
    left = 0;
    for (u32 i = 0; i < count; i++) {
      struct stream *s = &streams[i];
      i32 events = s->open ? polled[i].revents : 0;
      if (events & (POLLIN | POLLERR | POLLHUP)) receive(s, i);
      if (s->open && !s->ended && (events & POLLOUT)) transmit(s, i, chunk);
      left += s->open != 0;
    }
  }
  u32 bad = 0;
  for (u32 i = 0; i < count; i++) {
    struct stream *s = &streams[i];
    text("stream ");
    number(i);
    text(" sent ");
    number(s->sent);
    text(" received ");
    number(s->received);
    text(" wrong ");
    number(s->wrong);
    text(" error ");
    number(s->error);
    end_line(1);
    bad += s->wrong != 0 || s->error != 0 || !s->peer_ended;
  }
  text("streams done");
  end_line(1);
  return bad != 0;
}
