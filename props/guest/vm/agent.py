"""The program inside the guest that does what the host asks for.

It speaks JSON lines over a console or a virtio-serial port, never over vsock, so
that it answers even when the vsock device under test does not.

Host to guest, one object a line:
    {"id": 7, "op": "recv", "port": 1234}
Guest to host:
    {"ready": {...}}                       once, when the agent listens
    {"ack": 512}                           bytes read so far since the last ack
    {"id": 7, "event": "listening", ...}   any number of times
    {"id": 7, "ok": value}                 or
    {"id": 7, "error": {"type", "message", "trace"}}

Every request runs in a thread of its own, so that several can be under way.
"""

import os
import sys
import json
import time
import errno
import signal
import socket
import threading
from binascii import a2b_base64, b2a_base64

HOST_CID = 2
CHUNK_BYTES = 64 * 1024


# The control channel -------------------------------------------------------


class Channel:
    """JSON lines over one file descriptor, writes serialised by a lock."""

    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.Lock()

    def write(self, message):
        data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        with self.lock:
            while data:
                data = data[os.write(self.fd, data) :]

    def lines(self, acknowledge):
        """Yields each whole line; tells the host how much was read."""
        pending = b""
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except OSError:
                return  # the host hung up
            if not data:
                return
            if acknowledge:
                self.write({"ack": len(data)})
            pending += data
            if b"\n" in data:
                *lines, pending = pending.split(b"\n")
                yield from lines


class Call:
    """One request under way: its arguments, its events, what the host tells it."""

    def __init__(self, channel, request):
        self.channel = channel
        self.id = request["id"]
        self.request = request
        self.told = threading.Condition()
        self.words = []
        self.process = None

    def emit(self, event, **fields):
        self.channel.write({"id": self.id, "event": event, **fields})

    def tell(self, word):
        with self.told:
            self.words.append(word)
            self.told.notify_all()

    def heard(self, word):
        with self.told:
            return word in self.words

    def wait_for(self, word, timeout=None):
        """Blocks until the host has said `word` to this call."""
        with self.told:
            if not self.told.wait_for(lambda: word in self.words, timeout):
                raise TimeoutError("the host never said %r" % word)
            self.words.remove(word)


CALLS = {}


# Helpers for scenarios, also for code sent with the op "python" ---------------


def connect(port, cid=HOST_CID, timeout=None):
    """A stream connected to (cid, port)."""
    stream = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect((cid, port))
        stream.settimeout(None)
        return stream
    except BaseException:
        stream.close()
        raise


def listen(port, backlog=128):
    """A listening stream socket on `port` for any CID."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(backlog)
        return listener
    except BaseException:
        listener.close()
        raise


def sha256():
    import hashlib

    return hashlib.sha256()


def random_blocks(count, seed=None, chunk=CHUNK_BYTES):
    """`count` random bytes in blocks; the same for the same seed, except for None."""
    if seed is not None:
        import random

        source = random.Random(seed).randbytes
    else:
        source = os.urandom
    while count > 0:
        block = source(min(chunk, count))
        count -= len(block)
        yield block


def send_random(stream, count, seed=None, chunk=CHUNK_BYTES):
    """Writes `count` random bytes and returns {"bytes", "sha256"} of them."""
    digest = sha256()
    for block in random_blocks(count, seed, chunk):
        digest.update(block)
        stream.sendall(block)
    return {"bytes": count, "sha256": digest.hexdigest()}


def receive_all(stream, chunk=CHUNK_BYTES, limit=None):
    """Reads to the end of file, or `limit` bytes if they come first.

    {"bytes", "sha256", "head": text of the first 64}, plus "error" if it was cut.
    """
    digest = sha256()
    count = 0
    head = b""
    buffer = bytearray(chunk)
    view = memoryview(buffer)
    failure = None
    while limit is None or count < limit:
        try:
            got = stream.recv_into(buffer, chunk if limit is None else min(chunk, limit - count))
        except OSError as error:
            failure = errno.errorcode.get(error.errno, str(error))
            break
        if not got:
            break
        digest.update(view[:got])
        if len(head) < 64:
            head += bytes(view[: min(got, 64 - len(head))])
        count += got
    result = {"bytes": count, "sha256": digest.hexdigest(), "head": head.decode("latin-1")}
    if failure:
        result["error"] = failure
    return result


def answer_of(call):
    """The bytes to answer with: "answer" (text) or "answer_bytes" (random)."""
    text = call.request.get("answer")
    return text.encode("latin-1") if text is not None else None


def send_answer(stream, call):
    """Sends what the request wants said back, if anything; its description or None."""
    text = answer_of(call)
    if text is not None:
        stream.sendall(text)
        return {"bytes": len(text)}
    if call.request.get("answer_bytes"):
        return send_random(stream, call.request["answer_bytes"])
    return None


def open_stream(call):
    """The request's stream: accepted on "listen", or connected to "port"."""
    request = call.request
    if "listen" in request:
        with listen(request["listen"]) as listener:
            call.emit("listening", port=request["listen"])
            listener.settimeout(request.get("timeout", 60))
            stream, peer = listener.accept()
        stream.settimeout(None)
        call.emit("accepted", peer=list(peer))
        return stream
    stream = connect(request["port"], request.get("cid", HOST_CID), request.get("timeout"))
    call.emit("connected")
    return stream


def elapsed_ms(since):
    return round((time.monotonic() - since) * 1000, 3)


# Operations ---------------------------------------------------------------------


def op_ping(call):
    """Answers "value"."""
    return call.request.get("value")


def op_python(call):
    """Executes "code"; its names: the helpers here, args, call, emit. Answers `result`."""
    names = {
        name: value for name, value in globals().items() if not name.startswith("_")
    }
    names.update(
        __name__="scenario",
        args=call.request.get("args", {}),
        call=call,
        emit=call.emit,
        result=None,
    )
    exec(compile(call.request["code"], "scenario", "exec"), names)
    return names["result"]


def op_send(call):
    """Sends "bytes" random bytes, half-closes, and reads what comes back to the end.

    With "half_close": false it closes at once instead.
    """
    request = call.request
    with open_stream(call) as stream:
        started = time.monotonic()
        sent = send_random(
            stream, request["bytes"], request.get("seed"), request.get("chunk", CHUNK_BYTES)
        )
        received = None
        if request.get("half_close", True):
            stream.shutdown(socket.SHUT_WR)
            call.emit("sent", **sent)
            received = receive_all(stream)
        return {**sent, "received": received, "ms": elapsed_ms(started)}


def op_recv(call):
    """Reads to the end of file, then sends "answer" or "answer_bytes" and closes."""
    with open_stream(call) as stream:
        started = time.monotonic()
        received = receive_all(stream)
        call.emit("received", **received)
        answered = send_answer(stream, call)
        return {**received, "answered": answered, "ms": elapsed_ms(started)}


def echo(stream):
    """Sends back all that comes until the peer half-closes; how many bytes."""
    count = 0
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with stream:
        while True:
            got = stream.recv_into(buffer)
            if not got:
                return count
            stream.sendall(view[:got])
            count += got


def op_echo_server(call):
    """Echoes on "port", each connection in a thread, until told "stop"."""
    served = []
    failures = []
    threads = []

    def serve(stream):
        try:
            served.append(echo(stream))
        except OSError as error:
            failures.append(errno.errorcode.get(error.errno, str(error)))

    with listen(call.request["port"]) as listener:
        call.emit("listening", port=call.request["port"])
        listener.settimeout(0.2)
        while not call.heard("stop"):
            try:
                stream, _ = listener.accept()
            except TimeoutError:
                continue
            stream.settimeout(None)
            thread = threading.Thread(target=serve, args=(stream,), daemon=True)
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(5)
    return {"connections": len(served), "bytes": sum(served), "failures": failures}


def op_echo_clients(call):
    """"count" concurrent connections to "port", "bytes" each, each byte compared."""
    request = call.request
    count = request["count"]
    size = request["bytes"]
    results = [None] * count
    connected = threading.Barrier(count) if request.get("together", True) else None

    def one(index):
        try:
            with connect(request["port"], request.get("cid", HOST_CID)) as stream:
                if connected:
                    connected.wait(60)
                sent = sha256()

                def write():
                    for block in random_blocks(size, None, request.get("chunk", CHUNK_BYTES)):
                        sent.update(block)
                        stream.sendall(block)

                writer = threading.Thread(target=write, daemon=True)
                writer.start()
                received = receive_all(stream, limit=size)
                writer.join(30)
                if received["sha256"] == sent.hexdigest() and received["bytes"] == size:
                    results[index] = "ok"
                else:
                    results[index] = "got %d of %d bytes %s" % (
                        received["bytes"],
                        size,
                        received.get("error", "with other content"),
                    )
        except Exception as error:
            results[index] = "%s: %s" % (type(error).__name__, error)
            if connected:
                connected.abort()

    started = time.monotonic()
    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(request.get("timeout", 120))
    good = sum(1 for result in results if result == "ok")
    bad = sorted({str(result) for result in results if result != "ok"})
    return {"good": good, "bad": bad, "ms": elapsed_ms(started)}


def op_connect_time(call):
    """Connects once: {"errno": name or None, "ms"}."""
    request = call.request
    started = time.monotonic()
    try:
        stream = connect(request["port"], request.get("cid", HOST_CID), request.get("timeout"))
    except TimeoutError as error:
        name = errno.errorcode.get(error.errno, "ETIMEDOUT")
        return {"errno": name, "ms": elapsed_ms(started)}
    except OSError as error:
        return {
            "errno": errno.errorcode.get(error.errno, str(error.errno)),
            "ms": elapsed_ms(started),
        }
    took = elapsed_ms(started)
    stream.close()
    return {"errno": None, "ms": took}


def op_die_midstream(call):
    """A child process streams without end and is killed after "bytes" of them.

    The peer may get one "chunk" more than the answer says: the child can die between
    writing and counting.
    """
    request = call.request
    reader, writer = os.pipe()
    stream = open_stream(call)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.close(reader)
            block = b"x" * request.get("chunk", 4096)
            while True:
                count = os.write(stream.fileno(), block)
                os.write(writer, count.to_bytes(4, "little"))
        finally:
            os._exit(1)
    stream.close()  # the child holds the only reference now
    os.close(writer)
    written = 0
    while written < request.get("bytes", 1 << 20):
        got = os.read(reader, 4)
        if not got:
            break
        written += int.from_bytes(got, "little")
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while True:  # what it wrote between our count and its death
        got = os.read(reader, 4)
        if not got:
            break
        written += int.from_bytes(got, "little")
    os.close(reader)
    call.emit("killed", bytes=written)
    return {"bytes": written, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None}


def op_slow_reader(call):
    """Opens a stream and reads nothing until told "resume", then all to the end."""
    with open_stream(call) as stream:
        call.emit("waiting")
        call.wait_for("resume", call.request.get("timeout", 120))
        return receive_all(stream)


def op_spawn(call):
    """Runs "argv"; its output as events, its input by the op "input"."""
    import subprocess

    request = call.request
    environment = {**os.environ, **request.get("env", {})}
    terminal = request.get("pty")
    options = {"cwd": request.get("cwd"), "env": environment}
    if terminal:
        import fcntl
        import termios

        master, slave = os.openpty()
        resize(slave, terminal)

        def own_terminal():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        options.update(stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal)
    else:
        options.update(
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    try:
        process = subprocess.Popen(request["argv"], bufsize=0, **options)
    except OSError as error:
        if terminal:
            os.close(master)
            os.close(slave)
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        words = "%s: %s\n" % (request["argv"][0], os.strerror(error.errno))
        call.emit("stderr", data=b2a_base64(words.encode(), newline=False).decode())
        return {"code": 127 if missing else 126, "signal": None}
    if terminal:
        os.close(slave)
        outputs = [("stdout", master)]
        call.input = master
    else:
        outputs = [("stdout", process.stdout.fileno()), ("stderr", process.stderr.fileno())]
        call.input = process.stdin.fileno() if process.stdin else None
    call.process = process
    call.emit("started", pid=process.pid)

    def copy(name, fd):
        while True:
            try:
                data = os.read(fd, 1 << 15)
            except OSError:
                return  # a terminal whose last program is gone
            if not data:
                return
            call.emit(name, data=b2a_base64(data, newline=False).decode())

    threads = [threading.Thread(target=copy, args=output, daemon=True) for output in outputs]
    for thread in threads:
        thread.start()
    code = process.wait()
    for thread in threads:
        thread.join(1)  # a grandchild may hold the pipe open: do not wait for it
    call.input = None
    if terminal and not threads[0].is_alive():
        os.close(master)
    return {"code": code, "signal": None} if code >= 0 else {"code": 128 - code, "signal": -code}


def resize(fd, size):
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size["rows"], size["columns"], 0, 0))


def target_of(call):
    target = CALLS.get(call.request["to"])
    if target is None:
        raise LookupError("call %s is not under way" % call.request["to"])
    return target


def op_input(call):
    """Writes "data" (base64) to the spawned call "to", or ends its input with "eof"."""
    target = target_of(call)
    if target.process is None or target.input is None:
        raise LookupError("call %s takes no input" % call.request["to"])
    data = memoryview(a2b_base64(call.request.get("data", "")))
    try:
        while data:
            data = data[os.write(target.input, data) :]
    except OSError as error:
        return {"errno": errno.errorcode.get(error.errno, str(error))}
    if call.request.get("eof"):
        if target.request.get("pty"):
            os.write(target.input, b"\x04")
        else:
            target.process.stdin.close()
    return {}


def op_resize(call):
    """Sets the terminal's size of the spawned call "to"."""
    resize(target_of(call).input, call.request)


def op_signal(call):
    """Sends "signal" (a number) to the process group of the spawned call "to"."""
    target = target_of(call)
    if target.process is not None and target.process.poll() is None:
        os.killpg(target.process.pid, call.request["signal"])


def op_tell(call):
    """Says "word" to the call "to", which may wait for it."""
    target_of(call).tell(call.request["word"])


OPERATIONS = {
    name[3:]: value for name, value in list(globals().items()) if name.startswith("op_")
}


# The main loop ---------------------------------------------------------------------


def serve(call):
    message = {"id": call.id}
    try:
        operation = OPERATIONS.get(call.request.get("op"))
        if operation is None:
            raise LookupError("unknown operation %r" % call.request.get("op"))
        message["ok"] = operation(call)
    except BaseException as error:
        import traceback  # late: a boot should not wait for it

        message["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "trace": traceback.format_exc(),
        }
    CALLS.pop(call.id, None)
    try:
        call.channel.write(message)
    except TypeError as error:  # a result that is no JSON
        failure = {"type": "TypeError", "message": str(error), "trace": ""}
        call.channel.write({"id": call.id, "error": failure})


def local_cid():
    """The guest's own CID, or None without a vsock device."""
    import fcntl
    import struct

    try:
        with open("/dev/vsock", "rb") as device:
            answer = fcntl.ioctl(device, 0x7B9, b"\0" * 4)
            return struct.unpack("I", answer)[0]
    except OSError:
        return None


def main():
    path = sys.argv[1]
    acknowledge = "--ack" in sys.argv[2:]
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if os.isatty(fd):
        import tty

        tty.setraw(fd)
    channel = Channel(fd)
    with open("/proc/uptime") as uptime:
        seconds = float(uptime.read().split()[0])
    channel.write(
        {
            "ready": {
                "cid": local_cid(),
                "kernel": os.uname().release,
                "python": sys.version.split()[0],
                "uptime": seconds,
            }
        }
    )
    for line in channel.lines(acknowledge):
        if not line.strip():
            continue
        request = json.loads(line)
        if request.get("op") == "poweroff":
            channel.write({"id": request["id"], "ok": None})
            return
        call = Call(channel, request)
        CALLS[call.id] = call
        threading.Thread(target=serve, args=(call,), daemon=True).start()


main()
sys.stdout.flush()
os._exit(0)  # threads may be blocked in the device under test
