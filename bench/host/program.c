// The host programs of `deno task bench:host`: the same one for every device, in C so that it is no bottleneck.
//
//   program serve PATH            listens at PATH and serves connections until its standard input ends
//   program connect PATH PORT COUNT WINDOW
//                                 connects COUNT times to a guest's port, WINDOW at a time, closes each at once
//                                 and prints the nanoseconds of all, and those of its processor time
//
// A connection is asked by 16 bytes, again and again: u32 mode, u32 size, u64 bytes, little-endian.
//
//   1  sink    takes that many bytes and answers by one byte
//   2  source  sends that many bytes in writes of `size`
//   3  echo    sends back that many bytes, a read at a time

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SINK = 1, SOURCE = 2, ECHO = 3 };
enum { BUFFER_BYTES = 256 * 1024, QUANTUM_BYTES = 128 * 1024, EVENTS = 64 };

struct request {
  uint32_t mode;
  uint32_t size;
  uint64_t bytes;
};

struct connection {
  int fd;
  uint32_t watched;
  size_t asked;  // bytes of the request that have come
  uint64_t left;
  uint32_t piece;  // bytes of the current write that are left
  struct request request;
};

static char buffer[BUFFER_BYTES];
static int epoll;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static struct sockaddr_un address_of(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    errno = ENAMETOOLONG;
    fail(path);
  }
  strcpy(address.sun_path, path);
  return address;
}

static void watch(struct connection *c, uint32_t events) {
  if (c->watched == events) return;
  struct epoll_event event = {.events = events, .data.ptr = c};
  if (epoll_ctl(epoll, c->watched == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd,
                &event) < 0)
    fail("epoll_ctl");
  c->watched = events;
}

static void hang_up(struct connection *c) {
  close(c->fd);
  free(c);
}

// Up to a quantum of writes; 0 when the connection is over.
static int send_some(struct connection *c) {
  size_t size = c->request.size;
  for (size_t quantum = 0; c->left > 0 && quantum < QUANTUM_BYTES;) {
    size_t length = c->piece > 0 ? c->piece : size;
    if (length > c->left) length = c->left;
    ssize_t sent = send(c->fd, buffer, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno != EAGAIN) return 0;
      watch(c, EPOLLOUT);
      return 1;
    }
    c->piece = length - sent;
    c->left -= sent;
    quantum += sent;
  }
  watch(c, c->left > 0 ? EPOLLOUT : EPOLLIN);
  return 1;
}

// One read; 0 when the connection is over.
static int receive_some(struct connection *c) {
  if (c->left == 0) {
    ssize_t got = recv(c->fd, (char *)&c->request + c->asked,
                       sizeof c->request - c->asked, MSG_DONTWAIT);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    c->asked += got;
    if (c->asked < sizeof c->request) return 1;
    c->asked = 0;
    c->left = c->request.bytes;
    c->piece = 0;
    return c->request.mode == SOURCE ? send_some(c) : 1;
  }
  size_t most = c->left < BUFFER_BYTES ? c->left : BUFFER_BYTES;
  ssize_t got = recv(c->fd, buffer, most, MSG_DONTWAIT);
  if (got <= 0) return got < 0 && errno == EAGAIN;
  c->left -= got;
  // Both answers are small, and the guest waits for them: there is room.
  if (c->request.mode == ECHO)
    return send(c->fd, buffer, got, MSG_NOSIGNAL) == got;
  if (c->left == 0) return send(c->fd, buffer, 1, MSG_NOSIGNAL) == 1;
  return 1;
}

static void serve(const char *path) {
  struct sockaddr_un address = address_of(path);
  struct connection listener = {0}, input = {.fd = 0};
  unlink(path);
  listener.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (bind(listener.fd, (struct sockaddr *)&address, sizeof address) < 0 ||
      listen(listener.fd, 1024) < 0)
    fail(path);
  epoll = epoll_create1(0);
  watch(&listener, EPOLLIN);
  watch(&input, EPOLLIN);
  puts("listening");
  fflush(stdout);
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, -1);
    for (int i = 0; i < count; i++) {
      struct connection *c = events[i].data.ptr;
      if (c == &input) {
        char byte;
        if (read(0, &byte, 1) > 0) continue;
        unlink(path);
        exit(0);
      }
      if (c == &listener) {
        int fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0) continue;
        struct connection *fresh = calloc(1, sizeof *fresh);
        fresh->fd = fd;
        watch(fresh, EPOLLIN);
      } else if (c->watched == EPOLLOUT ? !send_some(c) : !receive_some(c)) {
        hang_up(c);
      }
    }
  }
}

static uint64_t now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void connect_all(const char *path, int port, int count, int window) {
  struct sockaddr_un address = address_of(path);
  struct pollfd *slots = calloc(window, sizeof *slots);
  char line[64];
  int length = snprintf(line, sizeof line, "CONNECT %d\n", port);
  int begun = 0, done = 0;
  for (int i = 0; i < window; i++) slots[i].fd = -1;
  uint64_t start = now(CLOCK_MONOTONIC);
  while (done < count) {
    for (int i = 0; i < window; i++) {
      if (slots[i].fd >= 0 || begun == count) continue;
      slots[i].fd = socket(AF_UNIX, SOCK_STREAM, 0);
      slots[i].events = POLLIN;
      if (connect(slots[i].fd, (struct sockaddr *)&address, sizeof address) <
              0 ||
          write(slots[i].fd, line, length) != length)
        fail("connect");
      begun++;
    }
    if (poll(slots, window, 10000) <= 0) {
      fprintf(stderr, "no answer to %d of %d\n", count - done, count);
      exit(1);
    }
    for (int i = 0; i < window; i++) {
      if (slots[i].fd < 0 || slots[i].revents == 0) continue;
      ssize_t got = read(slots[i].fd, buffer, sizeof buffer);
      if (got < 3 || memcmp(buffer, "OK ", 3) != 0) {
        fprintf(stderr, "refused\n");
        exit(1);
      }
      close(slots[i].fd);
      slots[i].fd = -1;
      done++;
    }
  }
  printf("%llu %llu\n", (unsigned long long)(now(CLOCK_MONOTONIC) - start),
         (unsigned long long)now(CLOCK_PROCESS_CPUTIME_ID));
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc == 3 && strcmp(argv[1], "serve") == 0) {
    serve(argv[2]);
  } else if (argc == 6 && strcmp(argv[1], "connect") == 0) {
    connect_all(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
  } else {
    fprintf(stderr, "usage: program serve PATH | connect PATH PORT COUNT WINDOW\n");
    return 2;
  }
  return 0;
}
