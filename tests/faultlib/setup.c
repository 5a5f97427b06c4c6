/* Finding the control file and the folder; telling own calls from those of a child not yet started. */
#include "faultlib.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct control *control;

static char folder[PATH_MAX];
static size_t folder_bytes;
static pid_t own_pid;

/* The system call itself: never one of our own functions. */
long raw(long number, ...)
{
    static long (*libc_syscall)(long, ...);
    long a[6];
    va_list rest;

    if (libc_syscall == NULL)
        libc_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(rest, long);
    va_end(rest);
    return libc_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Between vfork and exec a child runs in our memory with descriptors of its own: hands off. */
bool is_active(void)
{
    return control != NULL && folder_bytes > 0 && raw(SYS_getpid) == own_pid;
}

static void in_child(void)
{
    own_pid = (pid_t)raw(SYS_getpid);
    open_log();
}

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULTLIB_CONTROL");
    const char *below_path = getenv("FAULTLIB_FOLDER");
    void *mapped;
    int fd;

    if (path == NULL || (fd = (int)raw(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0)) < 0)
        return;
    mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    raw(SYS_close, fd);
    if (mapped == MAP_FAILED || ((struct control *)mapped)->magic != CONTROL_MAGIC) {
        fprintf(stderr, "faultlib: %s is not a control file\n", path);
        abort();
    }
    if (below_path != NULL && realpath(below_path, folder) != NULL)
        folder_bytes = strlen(folder);
    own_pid = (pid_t)raw(SYS_getpid);
    pthread_atfork(NULL, NULL, in_child);
    control = mapped;
    open_log();
}

/* Drop "//", "/./" and "/../" from an absolute path, in place. */
static void straighten(char *path)
{
    char *out = path;

    for (char *in = path; *in != '\0';) {
        size_t part = strcspn(in + 1, "/");
        if (part == 2 && in[1] == '.' && in[2] == '.') {
            while (out > path && *--out != '/')
                ;
        } else if (part > 0 && !(part == 1 && in[1] == '.')) {
            memmove(out, in, part + 1);
            out += part + 1;
        }
        in += part + 1;
    }
    *out = '\0';
}

/* The path that an open descriptor has now; its length, or -1. */
int64_t full_name_of(int fd, char *full)
{
    char link[64];
    long length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = raw(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
    if (length >= 0)
        full[length] = '\0';
    return length;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);

    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* What follows the folder in a full path: "" for the folder itself, NULL for what lies elsewhere. */
const char *below(const char *full)
{

    if (strncmp(full, folder, folder_bytes) != 0)
        return NULL;
    if (full[folder_bytes] == '\0')
        return full + folder_bytes;
    /* SQLite maps the first and makes them anew after a crash, programs print to the second by any
     * means they like: nothing in them is meant to last. */
    if (ends_with(full, "-shm") || ends_with(full, ".log"))
        return NULL;
    return full[folder_bytes] == '/' ? full + folder_bytes + 1 : NULL;
}

/* The name below the folder that a call means, or NULL. `full` gets its whole path. */
const char *name_below(int folder_fd, const char *path, char *full)
{
    int64_t length = 0;

    if (path == NULL || !is_active())
        return NULL;
    if (path[0] != '/') {
        if (folder_fd == AT_FDCWD)
            length = raw(SYS_getcwd, full, PATH_MAX) - 1;
        else
            length = full_name_of(folder_fd, full);
        if (length <= 0)
            return NULL;
        full[length++] = '/';
    }
    if (length + strlen(path) >= PATH_MAX)
        return NULL;
    strcpy(full + length, path);
    straighten(full);
    return below(full);
}
