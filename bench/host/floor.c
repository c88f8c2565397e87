// What the system's calls alone cost a device that carries streams between a guest and Unix sockets: loops that
// do nothing else. Prints the processor time of the measured side, in seconds a GiB.
//
//   floor send CONNECTIONS PACKETS REST MIB
//                       sends packets of 4 KiB, PACKETS in a call, on each connection in turn; after every 64
//                       packets it rests for REST microseconds. Somebody reads all connections by epoll.
//   floor receive SIZE MIB
//                       receives what somebody sends in writes of SIZE bytes: epoll_wait, then one recvmsg of at
//                       most 64 KiB

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_BYTES = 4096, BURST = 64, EVENTS = 64, RECEIVED_BYTES = 65536 };

static char buffer[BURST * PACKET_BYTES];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static double cpu_seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

// Reads all of `fds` by epoll until `bytes` have come, at most `room` bytes in a read.
static void receive(int count, const int *fds, long bytes, size_t room) {
  int epoll = epoll_create1(0);
  for (int i = 0; i < count; i++) {
    struct epoll_event event = {EPOLLIN, {.fd = fds[i]}};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) < 0) fail("epoll_ctl");
  }
  struct iovec iovec = {buffer, room};
  struct msghdr header = {.msg_iov = &iovec, .msg_iovlen = 1};
  while (bytes > 0) {
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(epoll, events, EVENTS, -1);
    for (int i = 0; i < ready; i++) {
      ssize_t got = recvmsg(events[i].data.fd, &header, MSG_DONTWAIT);
      if (got > 0) bytes -= got;
      else if (got == 0 || errno != EAGAIN) fail("recvmsg");
    }
  }
}

static void send_all(int count, const int *fds, int packets, int rest, long bytes) {
  struct iovec iovecs[BURST];
  for (int i = 0; i < BURST; i++) {
    iovecs[i] = (struct iovec){buffer + i * PACKET_BYTES, PACKET_BYTES};
  }
  struct msghdr header = {.msg_iov = iovecs, .msg_iovlen = packets};
  long sent_bytes = 0;
  for (int turn = 0, sent = 0; sent_bytes < bytes; turn = (turn + 1) % count) {
    // Where a socket is full this waits, which takes no processor time.
    ssize_t got = sendmsg(fds[turn], &header, MSG_NOSIGNAL);
    if (got < 0) fail("sendmsg");
    sent_bytes += got;
    sent += packets;
    if (rest > 0 && sent >= BURST) {
      sent = 0;
      usleep(rest);
    }
  }
}

static void write_all(int fd, size_t size, long bytes) {
  for (long sent = 0; sent < bytes; sent += size) {
    if (write(fd, buffer, size) != (ssize_t)size) fail("write");
  }
}

int main(int count, char **words) {
  int sends = count == 6 && strcmp(words[1], "send") == 0;
  if (!sends && !(count == 4 && strcmp(words[1], "receive") == 0)) {
    fprintf(stderr, "usage: see floor.c\n");
    return 2;
  }
  int pairs = sends ? atoi(words[2]) : 1;
  int packets = sends ? atoi(words[3]) : 0;
  long bytes = atol(words[count - 1]) << 20;
  if (pairs < 1 || packets > BURST || bytes < 1) return 2;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  int *ours = calloc(pairs, sizeof *ours);
  int *theirs = calloc(pairs, sizeof *theirs);
  for (int i = 0; i < pairs; i++) {
    int both[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, both) < 0) fail("socketpair");
    ours[i] = both[0];
    theirs[i] = both[1];
  }
  pid_t other = fork();
  if (other < 0) fail("fork");
  if (other == 0) {
    if (sends) receive(pairs, theirs, bytes, sizeof buffer);
    else write_all(theirs[0], atoi(words[2]), bytes);
    _exit(0);
  }
  double start = cpu_seconds();
  if (sends) send_all(pairs, ours, packets, atoi(words[4]), bytes);
  else receive(1, ours, bytes, RECEIVED_BYTES);
  printf("%.4f\n", (cpu_seconds() - start) / (bytes / 1073741824.0));
  for (int i = 0; i < pairs; i++) close(ours[i]);
  waitpid(other, NULL, 0);
  return 0;
}
