# What a process, its children and its copies of descriptors are told of locks on one file, whose name is the argument. It is the same on each filesystem.
import errno, fcntl, os, struct, sys, time

R, W, U, OFD = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK, 37
SH, EX, UN = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
LAST, ME = 2 ** 63 - 1, os.getpid()
def again():
    return os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
def tried(call):
    try:
        call()
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
def lock(fd, kind, start, length, how=fcntl.F_SETLK):
    return tried(lambda: fcntl.fcntl(fd, how, struct.pack('hhqqi4x', kind, 0, start, length, 0)))
def whole(fd, how):
    return tried(lambda: fcntl.flock(fd, how | fcntl.LOCK_NB))
def found(fd, kind, start, length):
    answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack('hhqqi4x', kind, 0, start, length, 0))
    kind, _, start, length, pid = struct.unpack('hhqqi4x', answer)
    return 'free' if kind == U else ('W' if kind == W else 'R', start, length, pid == ME)
def other(call):
    sys.stdout.flush()
    answer, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(tell, repr(call()).encode())
        finally:
            os._exit(0)
    os.close(tell)
    said = os.read(answer, 4096).decode()
    os.waitpid(pid, 0)
    os.close(answer)
    return said
def holder(call):
    sys.stdout.flush()
    ready, tell = os.pipe()
    stay, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(go)
            call()
            os.write(tell, b'x')
            os.read(stay, 1)
        finally:
            os._exit(0)
    os.read(ready, 1)
    def end():
        os.close(go)
        os.waitpid(pid, 0)
    return end
# Of a release nobody waits for the end.
def soon(call):
    for _ in range(200):
        if call() == 'ok':
            return 'ok'
        time.sleep(0.05)
    return 'never'

fd = again()
print('own', lock(fd, W, 0, 10), found(fd, W, 0, 10))
print('a child', other(lambda: (lock(fd, R, 5, 1), found(fd, W, 0, 1), lock(fd, U, 0, 0), lock(fd, W, 15, 1))))
print('a child closes', other(lambda: os.close(fd)), other(lambda: lock(fd, R, 0, 1)))
os.close(os.dup(fd))
print('a copy is closed', other(lambda: lock(fd, W, 0, 0)))
print('again', lock(fd, W, 0, 10))
os.close(again())
print('another one is closed', other(lambda: lock(fd, W, 0, 0)))

print('all but some', lock(fd, W, 0, 0), lock(fd, U, 100, 10))
print('seen', other(lambda: [found(fd, W, at, 1) for at in (0, 99, 100, 109, 110, LAST)]))
print('unlocked', lock(fd, U, 0, 0), other(lambda: found(fd, W, 0, 0)))
print('the last byte', lock(fd, W, LAST, 1), other(lambda: (found(fd, W, LAST - 1, 1), found(fd, R, LAST, 1))))
print('beyond', lock(fd, W, LAST, 2), lock(fd, U, LAST, 0), lock(fd, W, 10, -5), lock(fd, W, 3, -5))
print('backwards', other(lambda: [found(fd, W, at, 1) for at in (4, 5, 9, 10)]), lock(fd, U, 0, 0))

print('levels', lock(fd, R, 0, 10), other(lambda: (lock(fd, R, 5, 1), lock(fd, W, 5, 1))), lock(fd, W, 3, 2))
print('seen', other(lambda: [found(fd, R, at, 1) for at in (0, 3, 5)] + [found(fd, W, at, 1) for at in (0, 3, 5)]))
print('lowered', lock(fd, R, 0, 0), other(lambda: found(fd, W, 0, 0)))
end = holder(lambda: lock(fd, R, 0, 10))
print('two read', lock(fd, W, 5, 1), lock(fd, W, 10, 1), other(lambda: lock(fd, W, 20, 1)))
end()
print('one is gone', lock(fd, W, 5, 1), lock(fd, U, 0, 0))

a, b = again(), again()
print('of open files', lock(a, W, 0, 10, OFD), lock(b, W, 5, 1, OFD), lock(b, R, 10, 1, OFD), lock(fd, W, 0, 1))
os.close(os.dup(a))
print('a copy is closed', lock(b, W, 5, 1, OFD), other(lambda: lock(a, U, 0, 0, OFD)), lock(b, W, 5, 1, OFD))
print('closed', lock(a, W, 20, 1, OFD), lock(b, W, 20, 1, OFD), os.close(a), soon(lambda: lock(b, W, 20, 1, OFD)))
os.close(b)
print('both', soon(lambda: lock(fd, W, 0, 0)), lock(fd, U, 0, 0))

a, b = again(), again()
print('flock', whole(a, SH), whole(b, SH), whole(a, EX), whole(b, EX), whole(b, SH), whole(a, SH), whole(b, EX))
print('none is left of that', other(lambda: whole(again(), EX)), whole(a, EX), whole(b, SH))
print('beside fcntl', lock(fd, W, 0, 0), lock(fd, U, 0, 0))
print('a child unlocks', other(lambda: whole(again(), EX)), other(lambda: whole(a, UN)), whole(b, EX), whole(a, SH))
os.close(os.dup(b))
print('a copy is closed', whole(a, SH))
os.close(b)
print('closed', soon(lambda: whole(a, EX)), whole(a, UN))
os.close(a)

for n in range(1200):
    lock(fd, W, 2 * n, 1)
print('many', other(lambda: [lock(fd, W, at, 1) for at in (0, 1, 2200, 2201, 2398, 2400)]), lock(fd, U, 0, 0))
print('all', lock(fd, W, 0, 10000))
for n in range(1200):
    lock(fd, U, 2 * n + 1, 1)
print('holes', other(lambda: [lock(fd, W, at, 1) for at in (0, 1, 2200, 2201, 2399, 2400, 10000)]))
print('none', lock(fd, U, 0, 0), other(lambda: found(fd, W, 0, 0)))
