#include "daemon/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>

static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
enum { N_NUMBERS = sizeof numbers / sizeof *numbers };

static struct {
    uv_async_t wake;
    atomic_uint pending; /* bits of their numbers */
    void (*on_signal)(void *arg, int number);
    void *arg;
} signals;

/* Any thread, anywhere in it. */
static void
handle(int number)
{
    int saved = errno;

    atomic_fetch_or(&signals.pending, 1u << number);
    uv_async_send(&signals.wake);
    errno = saved;
}

static void
on_wake(uv_async_t *wake)
{
    unsigned pending = atomic_exchange(&signals.pending, 0);

    (void)wake;
    for (int i = 0; i < N_NUMBERS; i++)
        if (pending & 1u << numbers[i])
            signals.on_signal(signals.arg, numbers[i]);
}

int
signals_open(uv_loop_t *loop, void (*on_signal)(void *arg, int number), void *arg)
{
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    int status = uv_async_init(loop, &signals.wake, on_wake);

    if (status < 0)
        return status;
    uv_unref((uv_handle_t *)&signals.wake);
    signals.on_signal = on_signal;
    signals.arg = arg;
    sigfillset(&action.sa_mask);
    for (int i = 0; i < N_NUMBERS; i++)
        sigaction(numbers[i], &action, NULL);
    return 0;
}

void
signals_ignore(void)
{
    for (int i = 0; i < N_NUMBERS; i++)
        signal(numbers[i], SIG_IGN);
}

void
signals_close(void)
{
    signals_ignore();
    if (signals.on_signal) /* it was opened */
        uv_close((uv_handle_t *)&signals.wake, NULL);
}
