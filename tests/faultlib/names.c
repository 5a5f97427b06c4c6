/* Calls that make, find, rename and remove names; which descriptor means which file. */
#include "faultlib.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DESCRIPTORS_MAX 65536

static uint64_t files[DESCRIPTORS_MAX]; /* inode of each descriptor below the folder, else 0 */

static void note_file(int fd, uint64_t inode)
{
    if (fd >= 0 && fd < DESCRIPTORS_MAX && (files[fd] != 0 || inode != 0) && is_active())
        __atomic_store_n(&files[fd], inode, __ATOMIC_SEQ_CST);
}

/* The inode below the folder that this descriptor means, or 0. */
uint64_t file_at(int fd, struct stat *found)
{
    struct stat now;
    uint64_t inode;

    if (fd < 0 || fd >= DESCRIPTORS_MAX)
        return 0;
    inode = __atomic_load_n(&files[fd], __ATOMIC_SEQ_CST);
    if (inode == 0 || !is_active())
        return 0;
    /* The C library may have closed it by itself, and given the number to something else. */
    if (fstat(fd, found != NULL ? found : &now) != 0)
        return 0;
    return (found != NULL ? found : &now)->st_ino == inode ? inode : 0;
}

static void remember(int fd)
{
    struct stat file;

    if (fd >= 0 && fstat(fd, &file) == 0)
        note_file(fd, file.st_ino);
}

static int open_tracked(const char *full, const char *name, int flags, mode_t mode)
{
    struct stat before;
    bool existed, makes, empties;
    int crash = 0, fd, error;
    uint64_t ticket = 0;

    ops_lock();
    existed = stat(full, &before) == 0;
    makes = !existed && (flags & O_CREAT);
    empties = existed && (flags & O_TRUNC) && S_ISREG(before.st_mode) && before.st_size > 0;
    if (makes || empties)
        ops_count(&crash);
    if (makes)
        ticket = ops_log((struct record){.kind = KIND_CREATE}, name, NULL, 0);
    else if (empties)
        ticket = ops_log((struct record){.kind = KIND_TRUNCATE, .file = before.st_ino}, NULL,
                         NULL, 0);
    fd = (int)raw(SYS_openat, AT_FDCWD, full, (long)flags, (long)mode);
    error = errno;
    if (fd < 0 && (makes || empties))
        ops_void(ticket);
    remember(fd);
    if (fd >= 0 && makes && fstat(fd, &before) == 0)
        ops_log((struct record){
                    .kind = KIND_NAMED, .file = before.st_ino, .offset = (int64_t)ticket},
                NULL, NULL, 0);
    ops_crash(crash);
    ops_unlock();
    errno = error;
    return fd;
}

static int open_any(int folder_fd, const char *path, int flags, mode_t mode)
{
    char full[PATH_MAX];
    const char *name = (flags & O_TMPFILE) == O_TMPFILE ? NULL : name_below(folder_fd, path, full);
    int fd;

    if (name != NULL && (flags & (O_CREAT | O_TRUNC)))
        return open_tracked(full, name, flags, mode);
    fd = (int)raw(SYS_openat, folder_fd, path, (long)flags, (long)mode);
    if (name != NULL)
        remember(fd);
    else
        note_file(fd, 0);
    return fd;
}

#define OPEN_WITH_MODE(folder_fd)                       \
    mode_t mode = 0;                                    \
    if (flags & (O_CREAT | O_TMPFILE)) {                \
        va_list rest;                                   \
        va_start(rest, flags);                          \
        mode = (mode_t)va_arg(rest, int);               \
        va_end(rest);                                   \
    }                                                   \
    return open_any(folder_fd, path, flags, mode)

int open(const char *path, int flags, ...) { OPEN_WITH_MODE(AT_FDCWD); }
int open64(const char *path, int flags, ...) { OPEN_WITH_MODE(AT_FDCWD); }
int openat(int folder_fd, const char *path, int flags, ...) { OPEN_WITH_MODE(folder_fd); }
int openat64(int folder_fd, const char *path, int flags, ...) { OPEN_WITH_MODE(folder_fd); }
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return open_any(at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return open_any(at, path, flags, 0); }

int creat(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return creat(path, mode);
}

int close(int fd)
{
    note_file(fd, 0);
    return (int)raw(SYS_close, fd);
}

static int copied(int from, int to)
{
    if (from != to)
        note_file(to, file_at(from, NULL));
    return to;
}

int dup(int fd)
{
    return copied(fd, (int)raw(SYS_dup, fd));
}

int dup2(int fd, int to)
{
    return fd == to ? (int)raw(SYS_fcntl, fd, F_GETFD) < 0 ? -1 : fd
                    : copied(fd, (int)raw(SYS_dup3, fd, to, 0));
}

int dup3(int fd, int to, int flags)
{
    return copied(fd, (int)raw(SYS_dup3, fd, to, (long)flags));
}

/* Run one call that changes names, told to the log before; `kind` with its name and second name. */
static int change(enum kind kind, const char *name, const char *second, long number,
                  const long *arguments)
{
    struct iovec data = {(void *)second, second != NULL ? strlen(second) : 0};
    int crash, result, error;
    uint64_t ticket;

    ops_lock();
    ops_count(&crash);
    ticket = ops_log((struct record){.kind = kind}, name, &data, 1);
    result = (int)raw(number, arguments[0], arguments[1], arguments[2], arguments[3],
                      arguments[4]);
    error = errno;
    if (result != 0)
        ops_void(ticket);
    ops_crash(crash);
    ops_unlock();
    errno = error;
    return result;
}

/* A call with two names: tracked when both lie below the folder, noted when only one does. */
static int change_pair(enum kind kind, const char *from, const char *to, long number,
                       const long *arguments)
{
    char full[PATH_MAX], full_to[PATH_MAX];
    const char *name = name_below((int)arguments[0], from, full);
    const char *second = name_below((int)arguments[2], to, full_to);

    if (name == NULL && second == NULL)
        return (int)raw(number, arguments[0], arguments[1], arguments[2], arguments[3],
                        arguments[4]);
    if (name == NULL || second == NULL || (kind == KIND_RENAME && arguments[4] != 0))
        kind = KIND_UNSEEN;
    return change(kind, name != NULL ? name : second, second, number, arguments);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned int flags)
{
    return change_pair(KIND_RENAME, from, to, SYS_renameat2,
                       (long[]){from_fd, (long)from, to_fd, (long)to, flags});
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return renameat2(from_fd, from, to_fd, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    return change_pair(KIND_LINK, from, to, SYS_linkat,
                       (long[]){from_fd, (long)from, to_fd, (long)to, flags});
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

static int change_one(enum kind kind, int folder_fd, const char *path, long number, long last)
{
    char full[PATH_MAX];
    const char *name = name_below(folder_fd, path, full);

    if (name == NULL)
        return (int)raw(number, folder_fd, path, last);
    return change(kind, name, NULL, number, (long[]){folder_fd, (long)path, last, 0, 0});
}

int unlinkat(int folder_fd, const char *path, int flags)
{
    enum kind kind = flags & AT_REMOVEDIR ? KIND_RMDIR : KIND_UNLINK;

    return change_one(kind, folder_fd, path, SYS_unlinkat, flags);
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int remove(const char *path)
{
    int result = unlink(path);

    return result != 0 && errno == EISDIR ? rmdir(path) : result;
}

int mkdirat(int folder_fd, const char *path, mode_t mode)
{
    return change_one(KIND_MKDIR, folder_fd, path, SYS_mkdirat, (long)mode);
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}
