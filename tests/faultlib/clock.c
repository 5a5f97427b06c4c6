/* Clocks that jump and run too fast or too slow, and waits until a moment on such a clock. */
#include "faultlib.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define MILLION 1000000LL

struct settings {
    int64_t wall_jump_ns, turn_true_ns, turn_shown_ns, rate_before_ppm, rate_ppm;
};

typedef int (*clock_function)(clockid_t, struct timespec *);

static int64_t last_shown_ns; /* monotonic time never goes back, whatever is set meanwhile */

static int true_clock(clockid_t clock, struct timespec *time)
{
    static clock_function libc_clock;

    if (libc_clock == NULL)
        libc_clock = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    return libc_clock(clock, time);
}

static int64_t nanos(const struct timespec *time)
{
    return time->tv_sec * NANOS_PER_SECOND + time->tv_nsec;
}

static struct timespec timespec_of(int64_t ns)
{
    struct timespec time = {ns / NANOS_PER_SECOND, ns % NANOS_PER_SECOND};

    if (time.tv_nsec < 0) {
        time.tv_nsec += NANOS_PER_SECOND;
        time.tv_sec -= 1;
    }
    return time;
}

/* False: the clocks are true. */
static bool read_settings(struct settings *now)
{
    uint64_t before, after;

    if (control == NULL)
        return false;
    do {
        before = __atomic_load_n(&control->clock_changes, __ATOMIC_ACQUIRE);
        now->wall_jump_ns = control->wall_jump_ns;
        now->turn_true_ns = control->turn_true_ns;
        now->turn_shown_ns = control->turn_shown_ns;
        now->rate_before_ppm = control->rate_before_ppm;
        now->rate_ppm = control->rate_ppm;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        after = __atomic_load_n(&control->clock_changes, __ATOMIC_RELAXED);
    } while (before != after || (before & 1));
    return before != 0;
}

static int64_t shown(const struct settings *now, int64_t true_ns)
{
    int64_t since = true_ns - now->turn_true_ns;
    int64_t rate = since < 0 ? now->rate_before_ppm : now->rate_ppm;

    return now->turn_shown_ns + since + (int64_t)((__int128)since * rate / MILLION);
}

/* The other way round: when it will truly be that late. */
static int64_t true_time(const struct settings *now, int64_t shown_ns)
{
    int64_t since = shown_ns - now->turn_shown_ns;
    int64_t rate = since < 0 ? now->rate_before_ppm : now->rate_ppm;

    return now->turn_true_ns + (int64_t)((__int128)since * MILLION / (MILLION + rate));
}

static bool is_wall(clockid_t clock)
{
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
}

static bool is_monotonic(clockid_t clock)
{
    return clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE ||
           clock == CLOCK_MONOTONIC_RAW || clock == CLOCK_BOOTTIME;
}

static int64_t never_back(int64_t ns)
{
    int64_t last = __atomic_load_n(&last_shown_ns, __ATOMIC_SEQ_CST);

    while (last < ns && !__atomic_compare_exchange_n(&last_shown_ns, &last, ns, false,
                                                     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return last < ns ? ns : last;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    struct settings now;
    struct timespec monotonic;
    int64_t drift_ns, ns;
    int result = true_clock(clock, time);

    if (result != 0 || !(is_wall(clock) || is_monotonic(clock)) || !read_settings(&now))
        return result;
    true_clock(CLOCK_MONOTONIC, &monotonic);
    drift_ns = shown(&now, nanos(&monotonic)) - nanos(&monotonic);
    ns = nanos(time) + drift_ns + (is_wall(clock) ? now.wall_jump_ns : 0);
    if (clock == CLOCK_MONOTONIC)
        ns = never_back(shown(&now, nanos(time)));
    *time = timespec_of(ns);
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    struct timespec now;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *time = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL)
        *out = now.tv_sec;
    return now.tv_sec;
}

/* A moment on a clock as the process sees it, turned into what the system calls it. A wait that
 * has begun is not told of later changes. */
static const struct timespec *true_moment(clockid_t clock, const struct timespec *moment,
                                          struct timespec *turned)
{
    struct settings now;
    struct timespec wall, monotonic;
    int64_t ns, wall_less_monotonic;

    if (moment == NULL || !(is_wall(clock) || is_monotonic(clock)) || !read_settings(&now))
        return moment;
    ns = nanos(moment);
    if (is_wall(clock)) {
        true_clock(CLOCK_REALTIME, &wall);
        true_clock(CLOCK_MONOTONIC, &monotonic);
        wall_less_monotonic = nanos(&wall) - nanos(&monotonic);
        ns = true_time(&now, ns - now.wall_jump_ns - wall_less_monotonic) + wall_less_monotonic;
    } else {
        ns = true_time(&now, ns);
    }
    *turned = timespec_of(ns < 0 ? 0 : ns);
    return turned;
}

/* The C library keeps the clock of a condition in this bit since 2.25. */
static clockid_t clock_of(const pthread_cond_t *condition)
{
    return condition->__data.__wrefs & 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define KEPT(name)                                  \
    static __typeof__(&name) next;                  \
    struct timespec turned;                         \
    if (next == NULL)                               \
        next = NEXT(name)

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    static __typeof__(&pthread_cond_timedwait) next;
    struct timespec turned;

    /* Without a version the linker may give the one of before 2.3.2, for other conditions. */
    if (next == NULL)
        next = (__typeof__(next))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (next == NULL)
        next = NEXT(pthread_cond_timedwait);
    return next(condition, mutex, true_moment(clock_of(condition), until, &turned));
}

int pthread_cond_clockwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           clockid_t clock, const struct timespec *restrict until)
{
    KEPT(pthread_cond_clockwait);
    return next(condition, mutex, clock, true_moment(clock, until, &turned));
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
    KEPT(sem_timedwait);
    return next(semaphore, true_moment(CLOCK_REALTIME, until, &turned));
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock,
                  const struct timespec *restrict until)
{
    KEPT(sem_clockwait);
    return next(semaphore, clock, true_moment(clock, until, &turned));
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex,
                            const struct timespec *restrict until)
{
    KEPT(pthread_mutex_timedlock);
    return next(mutex, true_moment(CLOCK_REALTIME, until, &turned));
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until,
                    struct timespec *left)
{
    KEPT(clock_nanosleep);
    if (flags & TIMER_ABSTIME)
        until = true_moment(clock, until, &turned);
    return next(clock, flags, until, left);
}

/* Abseil, below gRPC, waits on futexes itself. */
long syscall(long number, ...)
{
    long a[6];
    struct timespec turned;
    va_list rest;

    va_start(rest, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET) {
        clockid_t clock = a[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC;
        a[3] = (long)true_moment(clock, (const struct timespec *)a[3], &turned);
    }
    return raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
