/* Many small packets each way, so that the indices of the rings go far.
 *
 *   flood PORT COUNT
 *
 * Connects to the host's port, writes COUNT single bytes, says "flood sent COUNT", then reads until the host
 * ends the stream, and says "flood of COUNT done". */

#include "linux_i386.h"

static i32 program(i32 argc, char **argv, char **environment) {
  (void)environment;
  i32 ok = argc == 3, also = 0;
  u32 port = ok ? parse(argv[1], &ok) : 0, count = ok ? parse(argv[2], &also) : 0;
  if (!ok || !also) {
    put(2, "usage: flood PORT COUNT\n");
    return 2;
  }
  i32 fd = vsock_connect(VMADDR_CID_HOST, port);
  static u8 bytes[4096];
  for (u32 i = 0; fd >= 0 && i < count; i++) {
    i32 done = sys(SYS_write, fd, (i32)bytes, 1);
    if (done != 1) fd = done < 0 ? done : -EAGAIN;
  }
  if (fd >= 0) {
    text("flood sent ");
    number(count);
    end_line(1);
  }
  i32 got = fd;
  while (fd >= 0 && (got = sys(SYS_read, fd, (i32)bytes, sizeof bytes)) > 0) continue;
  if (fd >= 0 && got == 0) {
    text("flood of ");
    number(count);
    text(" done");
    end_line(1);
    return 0;
  }
  put(1, "flood failed\n");
  return 1;
}
