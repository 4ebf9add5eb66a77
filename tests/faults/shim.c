/* Lets a process see a clock that jumped, and file system calls that fail.
 *
 * Preloaded. What is wrong is read at each call from the file named by XELINK_SHIM, one line each:
 *   clock SECONDS        the time of day is that much later, or earlier
 *   monotonic SECONDS    so is the clock that nobody sets, as after a pause of the whole machine
 *   ipv6 ERRNO           a socket of IPv6 cannot be had, as where the kernel has none
 *   CALL ERRNO           open, read, write, fsync or rename below XELINK_SHIM_ROOT fails with it;
 *                        fsync is that of a file, fsync-directory that of a directory
 *   hang 1               whoever asks for a file there is held, whatever signals come: a dead mount
 *   hang-CALL 1          so is who does this one of the calls above, or `look`: stat and its like
 * Without the file nothing is wrong.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Bare system calls: what is preloaded here must not call itself. */
static long told(const char *name) {
    const char *path = getenv("XELINK_SHIM");
    char text[512];
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    long size = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    text[size > 0 ? size : 0] = 0;
    for (char *rest, *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ' ')
            return atol(line + strlen(name));
    return 0;
}

static int below(int fd, const char *name) {
    const char *root = getenv("XELINK_SHIM_ROOT");
    char link[64], path[PATH_MAX];
    if (!root)
        return 0;
    if (name && name[0] == '/')
        return !strncmp(name, root, strlen(root));
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long size = syscall(SYS_readlink, link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = 0;
    return !strncmp(path, root, strlen(root));
}

static void held(const char *call, int fd, const char *name) {
    const struct timespec glance = {0, 20000000};
    char one[32];
    int saved = errno;
    snprintf(one, sizeof one, "hang-%s", call);
    while (below(fd, name) && (told("hang") || told(one)))
        nanosleep(&glance, NULL);
    errno = saved;
}

static int fails(const char *call, int fd, const char *name) {
    int saved = errno;
    held(call, fd, name);
    long number = below(fd, name) ? told(call) : 0;
    errno = number ? (int)number : saved;
    return number != 0;
}

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))

int clock_gettime(clockid_t clock, struct timespec *now) {
    long status = syscall(SYS_clock_gettime, clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC)) {
        int saved = errno;
        now->tv_sec += told(clock == CLOCK_REALTIME ? "clock" : "monotonic");
        errno = saved;
    }
    return (int)status;
}

int socket(int family, int type, int protocol) {
    long number = family == AF_INET6 ? told("ipv6") : 0;
    if (number) {
        errno = (int)number;
        return -1;
    }
    return (int)syscall(SYS_socket, family, type, protocol);
}

ssize_t read(int fd, void *bytes, size_t size) {
    return fails("read", fd, NULL) ? -1 : REAL(read)(fd, bytes, size);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    return fails("write", fd, NULL) ? -1 : REAL(write)(fd, bytes, size);
}

int fsync(int fd) {
    struct stat found;
    int directory = !fstat(fd, &found) && S_ISDIR(found.st_mode);
    return fails(directory ? "fsync-directory" : "fsync", fd, NULL) ? -1 : REAL(fsync)(fd);
}

int renameat(int from, const char *old, int to, const char *new) {
    return fails("rename", to, new) ? -1 : REAL(renameat)(from, old, to, new);
}

static int opened(int directory, const char *path, int flags, mode_t mode) {
    held("open", directory, path);
    if ((flags & O_ACCMODE) != O_RDONLY && fails("open", directory, path))
        return -1;
    return (int)syscall(SYS_openat, directory, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened(directory, path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened(directory, path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return opened(AT_FDCWD, path, flags, mode);
}

#define HELD(call, fd, name, ...)                                                                  \
    held("look", fd, name);                                                                        \
    return REAL(call)(__VA_ARGS__)

int stat(const char *path, struct stat *found) { HELD(stat, AT_FDCWD, path, path, found); }
int stat64(const char *path, struct stat64 *found) { HELD(stat64, AT_FDCWD, path, path, found); }
int lstat(const char *path, struct stat *found) { HELD(lstat, AT_FDCWD, path, path, found); }
int lstat64(const char *path, struct stat64 *found) { HELD(lstat64, AT_FDCWD, path, path, found); }
int access(const char *path, int mode) { HELD(access, AT_FDCWD, path, path, mode); }
int mkdir(const char *path, mode_t mode) { HELD(mkdir, AT_FDCWD, path, path, mode); }
DIR *opendir(const char *path) { HELD(opendir, AT_FDCWD, path, path); }

int fstatat(int fd, const char *path, struct stat *found, int flags) {
    HELD(fstatat, fd, path, fd, path, found, flags);
}

int fstatat64(int fd, const char *path, struct stat64 *found, int flags) {
    HELD(fstatat64, fd, path, fd, path, found, flags);
}

int statvfs(const char *path, struct statvfs *found) {
    HELD(statvfs, AT_FDCWD, path, path, found);
}

int statvfs64(const char *path, struct statvfs64 *found) {
    HELD(statvfs64, AT_FDCWD, path, path, found);
}

ssize_t readlink(const char *path, char *target, size_t size) {
    HELD(readlink, AT_FDCWD, path, path, target, size);
}
