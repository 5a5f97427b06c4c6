/* Calls that change or sync what is in a file. */
#include "faultlib.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PARTS_MAX 1024
#define AT_ITS_POSITION (-1)

static ssize_t refuse(int64_t error)
{
    __atomic_add_fetch(&control->refused_count, 1, __ATOMIC_SEQ_CST);
    errno = (int)error;
    return -1;
}

/* How many of these bytes there is room for; what only overwrites needs none. */
static size_t room_for(const struct stat *file, int64_t offset, size_t bytes)
{
    int64_t room = control->room_bytes;
    int64_t end = offset + (int64_t)bytes;
    int64_t inside = file->st_size > offset ? file->st_size - offset : 0;

    if (room < 0 || end <= file->st_size)
        return bytes;
    if (inside + room < (int64_t)bytes)
        bytes = (size_t)(inside + room);
    __atomic_sub_fetch(&control->room_bytes, (int64_t)bytes - inside, __ATOMIC_SEQ_CST);
    return bytes;
}

/* The first `bytes` of the parts; how many parts that takes. */
static int first_parts(const struct iovec *parts, int count, size_t bytes, struct iovec *first)
{
    int at = 0;

    for (; at < count && bytes > 0; at++) {
        first[at] = parts[at];
        if (first[at].iov_len > bytes)
            first[at].iov_len = bytes;
        bytes -= first[at].iov_len;
    }
    return at;
}

static ssize_t write_out(int fd, const struct iovec *parts, int count, int64_t offset)
{
    if (offset == AT_ITS_POSITION)
        return raw(SYS_writev, fd, parts, count);
    return raw(SYS_pwritev, fd, parts, count, (long)offset, (long)0);
}

static ssize_t write_tracked(int fd, const struct iovec *parts, int count, int64_t offset)
{
    struct iovec first[PARTS_MAX];
    struct stat file;
    size_t bytes = 0;
    ssize_t done;
    int crash;
    uint64_t ticket, inode = file_at(fd, &file);
    int64_t at = offset;

    if (inode == 0 || count > PARTS_MAX)
        return write_out(fd, parts, count, offset);
    if (control->write_errno != 0)
        return refuse(control->write_errno);
    for (int part = 0; part < count; part++)
        bytes += parts[part].iov_len;
    ops_lock();
    ops_count(&crash);
    file_at(fd, &file);
    if (raw(SYS_fcntl, fd, F_GETFL) & O_APPEND)
        at = file.st_size;
    else if (offset == AT_ITS_POSITION)
        at = raw(SYS_lseek, fd, 0L, SEEK_CUR);
    if (bytes > 0 && (bytes = room_for(&file, at, bytes)) == 0) {
        ops_unlock();
        return refuse(ENOSPC);
    }
    if (crash == CRASH_PARTIAL)
        bytes /= 2;
    count = first_parts(parts, count, bytes, first);
    struct record head = {.kind = KIND_WRITE, .file = inode, .offset = at};
    ticket = ops_log(head, NULL, first, count);
    done = write_out(fd, first, count, offset);
    int error = errno;
    if (done != (ssize_t)bytes) {
        ops_void(ticket);
        if (done > 0)
            ops_log(head, NULL, first, first_parts(parts, count, (size_t)done, first));
    }
    ops_crash(crash);
    ops_unlock();
    errno = error;
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    if (file_at(fd, NULL) == 0)
        return raw(SYS_write, fd, data, bytes);
    return write_tracked(fd, &(struct iovec){(void *)data, bytes}, 1, AT_ITS_POSITION);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    if (file_at(fd, NULL) == 0)
        return raw(SYS_pwrite64, fd, data, bytes, (long)offset);
    return write_tracked(fd, &(struct iovec){(void *)data, bytes}, 1, offset);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    return pwrite64(fd, data, bytes, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return write_tracked(fd, parts, count, AT_ITS_POSITION);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return write_tracked(fd, parts, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return write_tracked(fd, parts, count, offset);
}

static void note_unseen(int fd, const char *what)
{
    if (file_at(fd, NULL) == 0)
        return;
    ops_lock();
    ops_log((struct record){.kind = KIND_UNSEEN}, what, NULL, 0);
    ops_unlock();
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    if (flags == 0)
        return write_tracked(fd, parts, count, offset);
    note_unseen(fd, "pwritev2");
    return raw(SYS_pwritev2, fd, parts, (long)count, (long)offset, 0L, (long)flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return pwritev64v2(fd, parts, count, offset, flags);
}

/* Run a call that gives the file this size; `number` and its arguments as the system wants them. */
static int resize(int fd, int64_t size, long number, const long *arguments)
{
    int crash, result, error;
    struct stat file;
    uint64_t ticket, inode = file_at(fd, &file);

    if (inode == 0)
        return (int)raw(number, arguments[0], arguments[1], arguments[2], arguments[3]);
    if (control->write_errno != 0)
        return (int)refuse(control->write_errno);
    ops_lock();
    ops_count(&crash);
    struct record head = {.kind = KIND_TRUNCATE, .file = inode, .offset = size};
    ticket = ops_log(head, NULL, NULL, 0);
    result = (int)raw(number, arguments[0], arguments[1], arguments[2], arguments[3]);
    error = errno;
    if (result != 0)
        ops_void(ticket);
    ops_crash(crash);
    ops_unlock();
    errno = error;
    return result;
}

int ftruncate64(int fd, off64_t size)
{
    return resize(fd, size, SYS_ftruncate, (long[]){fd, size, 0, 0});
}

int ftruncate(int fd, off_t size)
{
    return ftruncate64(fd, size);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    struct stat file;
    int64_t end = offset + bytes;

    if (mode != 0)
        note_unseen(fd, "fallocate");
    else if (file_at(fd, &file) != 0 && end > file.st_size)
        return resize(fd, end, SYS_fallocate, (long[]){fd, mode, offset, bytes});
    return (int)raw(SYS_fallocate, fd, mode, (long)offset, (long)bytes);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return fallocate64(fd, mode, offset, bytes);
}

int posix_fallocate64(int fd, off64_t offset, off64_t bytes)
{
    return fallocate64(fd, 0, offset, bytes) == 0 ? 0 : errno;
}

int posix_fallocate(int fd, off_t offset, off_t bytes)
{
    return posix_fallocate64(fd, offset, bytes);
}

int truncate64(const char *path, off64_t size)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), result, error;

    if (fd < 0)
        return -1;
    result = ftruncate64(fd, size);
    error = errno;
    close(fd);
    errno = error;
    return result;
}

int truncate(const char *path, off_t size)
{
    return truncate64(path, size);
}

/* A sync that failed leaves its data forsaken: the system drops it, and a later sync says "done". */
static int sync_tracked(int fd, long number)
{
    char full[PATH_MAX];
    struct stat file;
    const char *name = NULL;
    int crash, error, result;
    uint64_t lie, inode = file_at(fd, &file);

    if (inode == 0)
        return (int)raw(number, fd);
    lie = S_ISDIR(file.st_mode) ? LIE_ABOUT_FOLDERS : LIE_ABOUT_FILES;
    ops_lock();
    uint64_t call = ops_count(&crash);
    struct record head = {.file = inode, .call = call, .offset = (int64_t)control->ticket};
    ops_unlock();
    if (control->lying_syncs & lie)
        return 0;
    result = control->sync_errno != 0 ? (int)refuse(control->sync_errno) : (int)raw(number, fd);
    error = errno;
    ops_lock();
    head.kind = result == 0 ? KIND_SYNC : KIND_SYNC_FAILED;
    if (S_ISDIR(file.st_mode) && full_name_of(fd, full) > 0) {
        name = below(full);
        head.kind = result == 0 ? KIND_SYNC_FOLDER : KIND_SYNC_FAILED;
    }
    ops_log(head, name, NULL, 0);
    ops_crash(crash);
    ops_unlock();
    errno = error;
    return result;
}

int fsync(int fd)
{
    return sync_tracked(fd, SYS_fsync);
}

int fdatasync(int fd)
{
    return sync_tracked(fd, SYS_fdatasync);
}

/* Promises nothing about power loss, so it makes nothing durable here. */
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned int flags)
{
    if (file_at(fd, NULL) != 0 && control->sync_errno != 0)
        return (int)refuse(control->sync_errno);
    return (int)raw(SYS_sync_file_range, fd, (long)offset, (long)bytes, (long)flags);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t bytes)
{
    note_unseen(to, "sendfile");
    return raw(SYS_sendfile, to, from, offset, bytes);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t bytes)
{
    return sendfile64(to, from, offset, bytes);
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t bytes,
                        unsigned int flags)
{
    note_unseen(to, "copy_file_range");
    return raw(SYS_copy_file_range, from, from_at, to, to_at, bytes, (long)flags);
}

void *mmap64(void *near, size_t bytes, int protection, int flags, int fd, off64_t offset)
{
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED))
        note_unseen(fd, "mmap");
    return (void *)raw(SYS_mmap, near, bytes, (long)protection, (long)flags, (long)fd,
                       (long)offset);
}
