/*
 * A preloaded ptrace() for user-mode-linux 6.1 on hosts whose CPU has AMX.
 *
 * Such a kernel hands at most 2696 bytes of XSTATE to PTRACE_SETREGSET, while the
 * host's kernel takes all of its user state (about 11 KB with AMX) or nothing. Here
 * the state is widened on its way in, with every component that was not handed
 * over left in its initial state, and cut on its way out.
 */
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE_MAX_BYTES (64 * 1024)
#define XSTATE_BV_OFFSET 512
#define LEGACY_COMPONENTS 3u /* x87 and SSE lie in the first 512 bytes */

static __thread unsigned char area[XSTATE_MAX_BYTES]
    __attribute__((aligned(64)));

/* Bytes of the host's user state, CPUID leaf 0xd. */
static size_t host_state_bytes(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(0xd, 0, &a, &b, &c, &d) || b > XSTATE_MAX_BYTES)
    return 0;
  return b;
}

/* The components that lie wholly within the first `bytes` bytes. */
static uint64_t components_within(size_t bytes) {
  uint64_t mask = LEGACY_COMPONENTS;
  for (unsigned i = 2; i < 63; i++) {
    unsigned a, b, c, d;
    if (__get_cpuid_count(0xd, i, &a, &b, &c, &d) && a != 0 && b != 0 &&
        (size_t)a + b <= bytes)
      mask |= (uint64_t)1 << i;
  }
  return mask;
}

static long widen(pid_t pid, const struct iovec *given, size_t full) {
  uint64_t present;
  struct iovec whole = {.iov_base = area, .iov_len = full};
  memset(area, 0, full);
  memcpy(area, given->iov_base, given->iov_len);
  memcpy(&present, area + XSTATE_BV_OFFSET, sizeof(present));
  present &= components_within(given->iov_len);
  memcpy(area + XSTATE_BV_OFFSET, &present, sizeof(present));
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &whole);
}

static long cut(pid_t pid, struct iovec *wanted, size_t full) {
  struct iovec whole = {.iov_base = area, .iov_len = full};
  long result =
      syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &whole);
  if (result < 0)
    return result;
  if (whole.iov_len < wanted->iov_len)
    wanted->iov_len = whole.iov_len;
  memcpy(wanted->iov_base, area, wanted->iov_len);
  return result;
}

long ptrace(enum __ptrace_request request, ...) {
  va_list list;
  va_start(list, request);
  pid_t pid = va_arg(list, pid_t);
  void *address = va_arg(list, void *);
  void *data = va_arg(list, void *);
  va_end(list);

  if ((request == PTRACE_SETREGSET || request == PTRACE_GETREGSET) &&
      (uintptr_t)address == NT_X86_XSTATE) {
    struct iovec *vector = data;
    size_t full = host_state_bytes();
    if (vector->iov_len >= XSTATE_BV_OFFSET + 64 && vector->iov_len < full)
      return request == PTRACE_SETREGSET ? widen(pid, vector, full)
                                         : cut(pid, vector, full);
  }
  if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA ||
      request == PTRACE_PEEKUSER) {
    /* The system call stores the word where the library returns it. */
    long word;
    if (syscall(SYS_ptrace, request, pid, address, &word) < 0)
      return -1;
    errno = 0;
    return word;
  }
  return syscall(SYS_ptrace, request, pid, address, data);
}
