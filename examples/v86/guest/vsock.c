/* Connects standard input and output, or a program, with a vsock. */

#include "linux_i386.h"

static const char usage[] =
    "usage: vsock connect [CID] PORT           carry standard input and output; CID 2 is the host\n"
    "       vsock listen PORT                  the same for the next connection to PORT\n"
    "       vsock serve PORT PROGRAM [ARG...]  run PROGRAM for each connection to PORT, by its path\n";

static i32 fail(const char *what, i32 error) {
  text("vsock: cannot ");
  text(what);
  text(": error ");
  number((u32)-error);
  end_line(2);
  return 1;
}

static i32 write_all(i32 fd, const u8 *bytes, i32 length) {
  while (length > 0) {
    i32 done = sys(SYS_write, fd, (i32)bytes, length);
    if (done == -EINTR) continue;
    if (done < 0) return done;
    bytes += done;
    length -= done;
  }
  return 0;
}

/* Both directions until the peer has ended its own; the end of standard input ends ours. */
static i32 carry(i32 fd) {
  static u8 buffer[65536];
  struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
  for (;;) {
    i32 ready = sys(SYS_poll, (i32)polled, 2, -1);
    if (ready == -EINTR) continue;
    if (ready < 0) return fail("wait", ready);
    for (i32 i = 0; i < 2; i++) {
      if (polled[i].fd < 0 || polled[i].revents == 0) continue;
      i32 got = sys(SYS_read, polled[i].fd, (i32)buffer, sizeof buffer);
      if (got == -EINTR || got == -EAGAIN) continue;
      if (i == 0 && got < 0) return fail("read from the socket", got);
      if (i == 0 && got == 0) return 0;
      if (i == 1 && got <= 0) {
        sys(SYS_shutdown, fd, SHUT_WR, 0);
        polled[1].fd = -1;
        continue;
      }
      i32 error = write_all(i == 0 ? 1 : fd, buffer, got);
      if (error < 0 && i == 0) return fail("write", error);
      if (error < 0) polled[1].fd = -1; /* the peer reads no more, but may still send */
    }
  }
}

static i32 serve(i32 listener, char **argv, char **environment) {
  for (;;) {
    i32 fd = sys4(SYS_accept4, listener, 0, 0, 0);
    if (fd < 0) return fail("accept", fd);
    i32 child = sys(SYS_fork, 0, 0, 0);
    if (child == 0) {
      /* A child of its own, so that nobody has to wait for it. */
      if (sys(SYS_fork, 0, 0, 0) != 0) sys(SYS_exit, 0, 0, 0);
      for (i32 to = 0; to < 3; to++) sys(SYS_dup2, fd, to, 0);
      if (fd > 2) sys(SYS_close, fd, 0, 0);
      sys(SYS_close, listener, 0, 0);
      i32 error = sys(SYS_execve, (i32)argv[0], (i32)argv, (i32)environment);
      sys(SYS_exit, fail("run the program", error), 0, 0);
    }
    sys(SYS_close, fd, 0, 0);
    if (child > 0) sys(SYS_waitpid, child, 0, 0);
  }
}

static i32 program(i32 argc, char **argv, char **environment) {
  i32 ok = 0, also = 1;
  if (argc >= 3 && same(argv[1], "connect") && argc <= 4) {
    u32 port = parse(argv[argc - 1], &ok);
    u32 cid = argc == 4 ? parse(argv[2], &also) : VMADDR_CID_HOST;
    if (ok && also) {
      i32 fd = vsock_connect(cid, port);
      return fd < 0 ? fail("connect", fd) : carry(fd);
    }
  } else if (argc >= 3 && (same(argv[1], "listen") || same(argv[1], "serve"))) {
    u32 port = parse(argv[2], &ok);
    i32 serves = same(argv[1], "serve");
    if (ok && (serves ? argc >= 4 : argc == 3)) {
      i32 listener = vsock_listen(port);
      if (listener < 0) return fail("listen", listener);
      if (serves) return serve(listener, argv + 3, environment);
      i32 fd = sys4(SYS_accept4, listener, 0, 0, 0);
      sys(SYS_close, listener, 0, 0);
      return fd < 0 ? fail("accept", fd) : carry(fd);
    }
  }
  put(2, usage);
  return 2;
}
