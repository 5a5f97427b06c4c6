/* Faults for a real process, switched on and off from outside while it runs.
 *
 * Loaded with LD_PRELOAD. FAULTLIB_CONTROL names the file that is mapped as `struct control`,
 * FAULTLIB_FOLDER the folder whose files are meant, FAULTLIB_LOG the log of what was done to them
 * (optional). Without the first the library does nothing. Not seen: names that lead through symbolic
 * links, files opened by stdio (fopen), descriptors copied by fcntl or inherited, and names that end
 * in "-shm" or ".log".
 */
#ifndef FAULTLIB_H
#define FAULTLIB_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define CONTROL_MAGIC 0x3154554146464d51ULL /* "QMFFAUT1" */
#define NANOS_PER_SECOND 1000000000LL

/* Laid out as in control.py. Only 64-bit fields, so that no padding can differ. */
struct control {
    uint64_t magic;
    int64_t write_errno;    /* every write below the folder fails with this; 0: none does */
    int64_t sync_errno;     /* the same for fsync, fdatasync and sync_file_range */
    uint64_t lying_syncs;   /* LIE_ABOUT_…: syncs of these say that all is well, and do nothing */
    int64_t room_bytes;     /* by how much files may still grow before ENOSPC; -1: without bound */
    int64_t refused_count;  /* calls that were made to fail so far */
    uint64_t call_count;    /* mutating calls below the folder so far */
    uint64_t crash_at_call; /* the process ends at this one; 0: never */
    uint64_t crash_when;    /* enum crash_when */
    uint64_t ticket;        /* of the next record of the log */
    uint64_t clock_changes; /* odd while the fields below are being changed; 0: true clocks */
    int64_t wall_jump_ns;
    int64_t turn_true_ns;   /* true monotonic time from which on the rate is `rate_ppm` */
    int64_t turn_shown_ns;  /* what the process is shown at that time */
    int64_t rate_before_ppm;
    int64_t rate_ppm;       /* how much faster than true time; may be negative */
};

#define LIE_ABOUT_FILES 1
#define LIE_ABOUT_FOLDERS 2

enum crash_when { CRASH_BEFORE = 1, CRASH_PARTIAL = 2, CRASH_AFTER = 3 };

enum kind {
    KIND_WRITE = 1,    /* file, offset, data */
    KIND_TRUNCATE = 2, /* file, offset: its new size */
    KIND_SYNC = 3,     /* file, offset: all records of it before this ticket are durable */
    KIND_SYNC_FAILED = 4,
    KIND_SYNC_FOLDER = 5, /* name, offset as above */
    KIND_CREATE = 6,      /* name; the file is told by KIND_NAMED */
    KIND_NAMED = 7,       /* file, offset: ticket of its CREATE */
    KIND_RENAME = 8,      /* name, data: the new name */
    KIND_UNLINK = 9,      /* name */
    KIND_MKDIR = 10,
    KIND_RMDIR = 11,
    KIND_LINK = 12,   /* name, data: the new name */
    KIND_VOID = 13,   /* offset: the ticket of a record that did not come to pass */
    KIND_UNSEEN = 14, /* name: something was done that the log cannot tell */
};

/* Head of a record; name and data follow. */
struct record {
    uint64_t kind;
    uint64_t ticket;
    uint64_t call; /* number of the mutating call that it belongs to */
    uint64_t file; /* inode */
    int64_t offset;
    uint32_t name_bytes;
    uint32_t data_bytes;
};

/* setup.c */
extern struct control *control;
bool is_active(void);
long raw(long number, ...);
const char *name_below(int folder_fd, const char *path, char *full);
int64_t full_name_of(int fd, char *full);
const char *below(const char *full);

/* oplog.c: everything here is called between ops_lock and ops_unlock. */
extern int log_fd;
void open_log(void);
void ops_lock(void);
void ops_unlock(void);
uint64_t ops_count(int *crash_when);
uint64_t ops_log(struct record head, const char *name, const struct iovec *data, int parts);
void ops_void(uint64_t ticket);
void ops_crash(int crash_when);

/* names.c */
uint64_t file_at(int fd, struct stat *found);

#endif
