#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mailbox.h"

static int letters[8];

static void
messages_arrive_in_order_and_no_more_than_fit(void **state)
{
    struct mailbox *mailbox = mailbox_new(3);
    for (int turn = 0; turn < 5; turn++) { /* around the ring */
        assert_int_equal(mailbox_send(mailbox, &letters[0]), 0);
        assert_int_equal(mailbox_send(mailbox, &letters[1]), 0);
        assert_int_equal(mailbox_send(mailbox, &letters[2]), 0);
        assert_int_equal(mailbox_send(mailbox, &letters[3]), -EAGAIN);
        assert_ptr_equal(mailbox_receive(mailbox, 0), &letters[0]);
        assert_int_equal(mailbox_send(mailbox, &letters[4]), 0);
        assert_ptr_equal(mailbox_receive(mailbox, UINT64_MAX), &letters[1]);
        assert_ptr_equal(mailbox_receive(mailbox, 1000), &letters[2]);
        assert_ptr_equal(mailbox_receive(mailbox, 0), &letters[4]);
        assert_null(mailbox_receive(mailbox, 0));
    }
    assert_null(mailbox_free(mailbox));
}

static void
an_empty_mailbox_gives_nothing_when_the_time_is_over(void **state)
{
    struct mailbox *mailbox = mailbox_new(1);
    uint64_t before = clock_now_ns();
    assert_null(mailbox_receive(mailbox, 5000000));
    uint64_t passed = clock_now_ns() - before;
    assert_true(passed >= 5000000 && passed < 10000000000u);
    mailbox_free(mailbox);
}

static void
after_closing_what_was_queued_can_still_be_received(void **state)
{
    struct mailbox *mailbox = mailbox_new(2);
    assert_int_equal(mailbox_send(mailbox, &letters[0]), 0);
    mailbox_close(mailbox);
    assert_int_equal(mailbox_send(mailbox, &letters[1]), -EPIPE);
    assert_ptr_equal(mailbox_receive(mailbox, UINT64_MAX), &letters[0]);
    assert_null(mailbox_receive(mailbox, UINT64_MAX));
    mailbox_free(mailbox);
}

static void
a_wake_returns_a_receiver_once_even_when_it_came_first(void **state)
{
    struct mailbox *mailbox = mailbox_new(2);
    mailbox_wake(mailbox);
    assert_null(mailbox_receive(mailbox, UINT64_MAX));
    uint64_t before = clock_now_ns();
    assert_null(mailbox_receive(mailbox, 3000000));
    assert_true(clock_now_ns() - before >= 3000000);
    mailbox_free(mailbox);
}

static int
readable(int fd)
{
    struct pollfd look = {.fd = fd, .events = POLLIN};
    return poll(&look, 1, 0);
}

static void
the_descriptor_is_readable_while_messages_may_be_waiting(void **state)
{
    uint64_t count;
    for (int before = 0; before < 2; before++) {
        struct mailbox *mailbox = mailbox_new(4);
        if (before)
            assert_int_equal(mailbox_send(mailbox, &letters[0]), 0);
        int fd = mailbox_fd(mailbox);
        assert_true(fd >= 0);
        assert_int_equal(mailbox_fd(mailbox), fd);
        assert_int_equal(readable(fd), before);
        if (!before)
            assert_int_equal(mailbox_send(mailbox, &letters[0]), 0);
        assert_int_equal(readable(fd), 1);
        assert_int_equal(read(fd, &count, sizeof count), sizeof count);
        assert_int_equal(readable(fd), 0);
        mailbox_wake(mailbox);
        assert_int_equal(readable(fd), 1);
        assert_int_equal(read(fd, &count, sizeof count), sizeof count);
        assert_int_equal(read(fd, &count, sizeof count), -1); /* it never blocks */
        mailbox_close(mailbox);
        assert_int_equal(readable(fd), 1);
        assert_ptr_equal(mailbox_receive(mailbox, 0), &letters[0]);
        mailbox_free(mailbox);
    }
}

enum { SENDERS = 3, EACH = 20000 };
struct crowd {
    struct mailbox *mailbox;
    int first;
};
struct note {
    int sender, number;
};

static void *
send_many(void *arg)
{
    struct crowd *crowd = arg;
    for (int i = 0; i < EACH; i++) {
        struct note *note = malloc(sizeof *note);
        if (!note)
            return NULL;
        *note = (struct note){crowd->first, i};
        while (mailbox_send(crowd->mailbox, note) == -EAGAIN)
            (void)usleep(10);
    }
    return crowd;
}

static void
many_senders(bool by_descriptor)
{
    struct mailbox *mailbox = mailbox_new(64);
    struct crowd crowd[SENDERS];
    pthread_t thread[SENDERS];
    int next[SENDERS] = {0}, fd = by_descriptor ? mailbox_fd(mailbox) : -1;
    for (int i = 0; i < SENDERS; i++) {
        crowd[i] = (struct crowd){mailbox, i};
        assert_int_equal(pthread_create(&thread[i], NULL, send_many, &crowd[i]), 0);
    }
    for (int got = 0; got < SENDERS * EACH;) {
        if (by_descriptor) {
            struct pollfd look = {.fd = fd, .events = POLLIN};
            uint64_t count;
            assert_int_equal(poll(&look, 1, 20000), 1);
            assert_int_equal(read(fd, &count, sizeof count), sizeof count);
        }
        struct note *note = mailbox_receive(mailbox, by_descriptor ? 0 : 20000000000u);
        assert_true(note || by_descriptor);
        while (note) {
            assert_int_equal(note->number, next[note->sender]++);
            free(note);
            got++;
            note = mailbox_receive(mailbox, 0);
        }
    }
    for (int i = 0; i < SENDERS; i++) {
        void *result = NULL;
        assert_int_equal(pthread_join(thread[i], &result), 0);
        assert_ptr_equal(result, &crowd[i]);
    }
    mailbox_free(mailbox);
}

static void
nothing_is_lost_between_many_senders_and_a_sleeping_receiver(void **state)
{
    many_senders(false);
}

static void
nothing_is_lost_between_many_senders_and_a_polling_receiver(void **state)
{
    many_senders(true);
}

static void *
close_soon(void *arg)
{
    (void)usleep(2000);
    mailbox_close(arg);
    return arg;
}

static void
closing_wakes_a_receiver_that_waits_without_limit(void **state)
{
    struct mailbox *mailbox = mailbox_new(1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, close_soon, mailbox), 0);
    assert_null(mailbox_receive(mailbox, UINT64_MAX));
    assert_int_equal(pthread_join(thread, NULL), 0);
    mailbox_free(mailbox);
    assert_null(mailbox_free(NULL));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_arrive_in_order_and_no_more_than_fit),
        cmocka_unit_test(an_empty_mailbox_gives_nothing_when_the_time_is_over),
        cmocka_unit_test(after_closing_what_was_queued_can_still_be_received),
        cmocka_unit_test(a_wake_returns_a_receiver_once_even_when_it_came_first),
        cmocka_unit_test(the_descriptor_is_readable_while_messages_may_be_waiting),
        cmocka_unit_test(nothing_is_lost_between_many_senders_and_a_sleeping_receiver),
        cmocka_unit_test(nothing_is_lost_between_many_senders_and_a_polling_receiver),
        cmocka_unit_test(closing_wakes_a_receiver_that_waits_without_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
