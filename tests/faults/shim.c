/* Preloaded: the n-th operation that changes a file below a directory fails, or kills the process.

   A disk that is full stays so: from the n-th on, all that needs room fails, and statvfs says that nothing is free.
   What only removes is counted where it may kill, and never fails. Forked children are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long at, count;
static int code, has_struck, owner, report = -1; /* code: an errno, or 0 to kill */
static char below[PATH_MAX];

void fault_arm(long n, int how, const char *directory, int log) {
    at = n, code = how, count = 0, has_struck = 0, report = log, owner = getpid();
    snprintf(below, sizeof below, "%s/", directory);
}

long fault_count(void) { return count; }

static int is_below(const char *path) { return !strncmp(path, below, strlen(below)); }

static int strikes(const char *operation, const char *path, int only_removes) {
    if (!at || getpid() != owner || !is_below(path) || (only_removes && code)) return 0;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (number != at && !(has_struck && code == ENOSPC)) return 0;
    if (!has_struck) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", operation, path + strlen(below));
        if (report >= 0) syscall(SYS_write, report, line, size);
    }
    has_struck = 1;
    if (!code) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) syscall(SYS_pause);
    }
    errno = code;
    return 1;
}

static const char *of_handle(int handle, char *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, found, PATH_MAX - 1);
    found[size < 0 ? 0 : size] = 0;
    return found;
}

static const char *of_place(int folder, const char *path, char *found) {
    if (path[0] == '/' || folder == AT_FDCWD) return path;
    of_handle(folder, found);
    size_t size = strlen(found);
    snprintf(found + size, PATH_MAX - size, "/%s", path);
    return found;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_HANDLE(type, name, parameters, arguments, handle)                   \
    type name parameters {                                                     \
        char found[PATH_MAX];                                                  \
        if (at && strikes(#name, of_handle(handle, found), 0)) return -1;      \
        return REAL(name) arguments;                                           \
    }
#define BY_PATH(name, parameters, arguments, path, only_removes)               \
    int name parameters {                                                      \
        if (at && strikes(#name, path, only_removes)) return -1;               \
        return REAL(name) arguments;                                           \
    }
#define OPENS(name)                                                            \
    int name(const char *path, int flags, ...) {                               \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                          \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT);                    \
        if (at && writes && strikes("open", path, 0)) return -1;               \
        return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name))(path, flags, mode); \
    }
#define OPENS_AT(name)                                                         \
    int name(int folder, const char *path, int flags, ...) {                   \
        va_list rest;                                                          \
        va_start(rest, flags);                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                          \
        char found[PATH_MAX];                                                  \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT);                    \
        if (at && writes && strikes("open", of_place(folder, path, found), 0)) return -1; \
        return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name))(folder, path, flags, mode); \
    }
#define RESERVES(name, offset)                                                 \
    int name(int handle, offset from, offset size) {                           \
        char found[PATH_MAX];                                                  \
        if (at && strikes(#name, of_handle(handle, found), 0)) return errno;   \
        return REAL(name)(handle, from, size);                                 \
    }
#define TELLS_ROOM(name, type)                                                 \
    int name(const char *path, type *found) {                                  \
        int result = REAL(name)(path, found);                                  \
        if (!result && has_struck && code == ENOSPC && getpid() == owner) found->f_bavail = found->f_bfree = 0; \
        return result;                                                         \
    }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
BY_PATH(mkdir, (const char *path, mode_t mode), (path, mode), path, 0)
BY_PATH(rename, (const char *from, const char *to), (from, to), to, 0)
BY_PATH(link, (const char *from, const char *to), (from, to), to, 0)
BY_PATH(symlink, (const char *from, const char *to), (from, to), to, 0)
BY_PATH(unlink, (const char *path), (path), path, 1)
BY_PATH(rmdir, (const char *path), (path), path, 1)
BY_HANDLE(ssize_t, write, (int handle, const void *data, size_t size), (handle, data, size), handle)
BY_HANDLE(ssize_t, writev, (int handle, const struct iovec *parts, int n), (handle, parts, n), handle)
BY_HANDLE(ssize_t, pwrite, (int handle, const void *data, size_t size, off_t to), (handle, data, size, to), handle)
BY_HANDLE(ssize_t, pwrite64, (int handle, const void *data, size_t size, off64_t to), (handle, data, size, to), handle)
BY_HANDLE(ssize_t, sendfile, (int to, int from, off_t *start, size_t size), (to, from, start, size), to)
BY_HANDLE(ssize_t, sendfile64, (int to, int from, off64_t *start, size_t size), (to, from, start, size), to)
BY_HANDLE(int, fsync, (int handle), (handle), handle)
BY_HANDLE(int, fdatasync, (int handle), (handle), handle)
BY_HANDLE(int, ftruncate, (int handle, off_t size), (handle, size), handle)
BY_HANDLE(int, ftruncate64, (int handle, off64_t size), (handle, size), handle)
RESERVES(posix_fallocate, off_t)
RESERVES(posix_fallocate64, off64_t)
TELLS_ROOM(statvfs, struct statvfs)
TELLS_ROOM(statvfs64, struct statvfs64)

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char found[PATH_MAX];
    if (at && strikes("renameat2", of_place(to, new, found), 0)) return -1;
    return syscall(SYS_renameat2, from, old, to, new, flags);
}

int unlinkat(int folder, const char *path, int flags) {
    char found[PATH_MAX];
    if (at && strikes("unlinkat", of_place(folder, path, found), 1)) return -1;
    return REAL(unlinkat)(folder, path, flags);
}
