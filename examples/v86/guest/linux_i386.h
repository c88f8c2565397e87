/* What the guest programs need of Linux on i386, without a C library: built by
 *   gcc -m32 -nostdlib -static -ffreestanding
 * so that no headers and no libraries for i386 are needed. Numbers are those of Linux's user-space ABI. */

#ifndef LINUX_I386_H
#define LINUX_I386_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;

enum {
  SYS_exit = 1, SYS_fork = 2, SYS_read = 3, SYS_write = 4, SYS_close = 6,
  SYS_waitpid = 7, SYS_execve = 11, SYS_dup2 = 63, SYS_poll = 168,
  SYS_fcntl64 = 221, SYS_socket = 359, SYS_bind = 361, SYS_connect = 362,
  SYS_listen = 363, SYS_accept4 = 364, SYS_getsockopt = 365, SYS_shutdown = 373,
};

enum { AF_VSOCK = 40, SOCK_STREAM = 1, SOCK_NONBLOCK = 04000 };
enum { VMADDR_CID_ANY = -1, VMADDR_CID_HOST = 2 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
enum { SHUT_WR = 1 };
enum { EINTR = 4, EAGAIN = 11 };
enum { F_SETFL = 4, O_NONBLOCK = 04000 };

struct sockaddr_vm {
  u16 family;
  u16 reserved;
  u32 port;
  u32 cid;
  u8 flags;
  u8 zero[3];
};

struct pollfd {
  i32 fd;
  short events;
  short revents;
};

static inline i32 sys(i32 number, i32 a, i32 b, i32 c) {
  i32 result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(a), "c"(b), "d"(c)
                   : "memory");
  return result;
}

static inline i32 sys4(i32 number, i32 a, i32 b, i32 c, i32 d) {
  i32 result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d)
                   : "memory");
  return result;
}

/* The compiler may call these. */
void *memcpy(void *to, const void *from, u32 n) {
  u8 *d = to;
  const u8 *s = from;
  while (n--) *d++ = *s++;
  return to;
}

void *memset(void *to, int value, u32 n) {
  u8 *d = to;
  while (n--) *d++ = (u8)value;
  return to;
}

static u32 length_of(const char *text) {
  u32 n = 0;
  while (text[n]) n++;
  return n;
}

static inline void put(i32 fd, const char *text) {
  sys(SYS_write, fd, (i32)text, (i32)length_of(text));
}

/* Appends to a line; a line is written at once, so that lines of two processes do not mix. */
static char line[512];
static u32 line_length;

static void text(const char *words) {
  while (*words && line_length < sizeof line) line[line_length++] = *words++;
}

static void number(u32 value) {
  char digits[12];
  u32 n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (n && line_length < sizeof line) line[line_length++] = digits[--n];
}

static void end_line(i32 fd) {
  text("\n");
  sys(SYS_write, fd, (i32)line, (i32)line_length);
  line_length = 0;
}

/* A decimal number below 2^32; -1 at `*ok` 0 where the text is none. */
static u32 parse(const char *digits, i32 *ok) {
  u32 value = 0;
  *ok = *digits != 0;
  for (; *digits; digits++) {
    u32 digit = (u32)(*digits - '0');
    if (digit > 9 || value > 429496729u || (value == 429496729u && digit > 5)) *ok = 0;
    value = value * 10 + digit;
  }
  return value;
}

static inline i32 same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

static inline i32 vsock_socket(void) { return sys(SYS_socket, AF_VSOCK, SOCK_STREAM, 0); }

/* A connected socket, or a negative error number. */
static inline i32 vsock_connect(u32 cid, u32 port) {
  i32 fd = vsock_socket();
  if (fd < 0) return fd;
  struct sockaddr_vm address = {.family = AF_VSOCK, .port = port, .cid = cid};
  /* A guest that is not the host is reached through the host (VMADDR_FLAG_TO_HOST). */
  if (cid > VMADDR_CID_HOST) address.flags = 1;
  i32 error = sys(SYS_connect, fd, (i32)&address, sizeof address);
  if (error < 0) {
    sys(SYS_close, fd, 0, 0);
    return error;
  }
  return fd;
}

/* A listening socket, or a negative error number. */
static inline i32 vsock_listen(u32 port) {
  i32 fd = vsock_socket();
  if (fd < 0) return fd;
  struct sockaddr_vm address = {.family = AF_VSOCK, .port = port, .cid = (u32)VMADDR_CID_ANY};
  i32 error = sys(SYS_bind, fd, (i32)&address, sizeof address);
  if (error >= 0) error = sys(SYS_listen, fd, 64, 0);
  if (error < 0) {
    sys(SYS_close, fd, 0, 0);
    return error;
  }
  return fd;
}

static i32 program(i32 argc, char **argv, char **environment);

/* Where the kernel starts a program: argc, argv and the environment lie on the stack. */
__attribute__((used)) static void start(i32 *stack) {
  i32 argc = stack[0];
  char **argv = (char **)(stack + 1);
  sys(SYS_exit, program(argc, argv, argv + argc + 1), 0, 0);
}

__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %esp, %eax\n and $-16, %esp\n"
        " sub $12, %esp\n push %eax\n call start\n hlt\n");

#endif
