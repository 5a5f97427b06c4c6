/* The log of what is done to the files, written before it is done; counting calls and crashing. */
#include "faultlib.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PARTS_MAX 1026
#define CRASH_CODE 137

int log_fd = -1;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t call; /* the mutating call under way, under the lock */

/* A description of its own for each process: a lock on it then excludes the others. */
void open_log(void)
{
    const char *path = getenv("FAULTLIB_LOG");
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC;

    if (log_fd >= 0)
        raw(SYS_close, log_fd);
    log_fd = -1;
    if (path == NULL)
        return;
    log_fd = (int)raw(SYS_openat, AT_FDCWD, path, flags, 0600);
    if (log_fd < 0)
        abort();
}

/* One operation at a time, in this process and in the others that share the log, so that the
 * order of the log is the order of what happened. A process that dies lets go of it. */
void ops_lock(void)
{
    pthread_mutex_lock(&lock);
    if (log_fd >= 0)
        while (raw(SYS_flock, log_fd, LOCK_EX) < 0)
            ;
}

void ops_unlock(void)
{
    if (log_fd >= 0)
        raw(SYS_flock, log_fd, LOCK_UN);
    pthread_mutex_unlock(&lock);
}

/* Count one mutating call; does not return when the process is to end before it. */
uint64_t ops_count(int *crash_when)
{
    call = __atomic_add_fetch(&control->call_count, 1, __ATOMIC_SEQ_CST);
    *crash_when = call == control->crash_at_call ? (int)control->crash_when : 0;
    if (*crash_when == CRASH_BEFORE)
        ops_crash(*crash_when);
    return call;
}

void ops_crash(int crash_when)
{
    if (crash_when != 0)
        raw(SYS_exit_group, CRASH_CODE);
}

uint64_t ops_log(struct record head, const char *name, const struct iovec *data, int parts)
{
    struct iovec all[PARTS_MAX];
    size_t total = sizeof head;
    long written;

    head.ticket = __atomic_fetch_add(&control->ticket, 1, __ATOMIC_SEQ_CST);
    if (log_fd < 0)
        return head.ticket;
    if (head.call == 0)
        head.call = call;
    head.name_bytes = name != NULL ? (uint32_t)strlen(name) : 0;
    head.data_bytes = 0;
    all[0] = (struct iovec){&head, sizeof head};
    all[1] = (struct iovec){(void *)name, head.name_bytes};
    for (int at = 0; at < parts; at++) {
        all[at + 2] = data[at];
        head.data_bytes += (uint32_t)data[at].iov_len;
    }
    total += head.name_bytes + head.data_bytes;
    written = raw(SYS_writev, log_fd, all, parts + 2);
    /* A log with a hole proves nothing: better no run at all. */
    if (written != (long)total)
        abort();
    return head.ticket;
}

void ops_void(uint64_t ticket)
{
    ops_log((struct record){.kind = KIND_VOID, .offset = (int64_t)ticket}, NULL, NULL, 0);
}
