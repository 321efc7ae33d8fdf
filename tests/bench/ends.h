/* What the compiled ends share: sockets on 127.0.0.1, one epoll, a buffer of what has come, latencies.
 *
 * A connection that is to pass opaque begins with the byte OPAQUE, which no protocol begins with: proxies
 * that look decide on it at once, and the server drops it. Everything behind it is the same bytes. What goes
 * wrong ends the program with one line on stderr; nothing here may be the slow part of a measurement.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { OPAQUE = 0xFF, ROOM = 256 * 1024, EVENTS = 64, PATIENCE_SECONDS = 30 };

/* What has come on a connection and is not used yet. The room is one for all connections: `rest` is only what
 * was left of a message that is not whole, so that thousands of idle ones cost nothing. */
typedef struct {
    int socket;
    int begun; /* its first byte was seen */
    size_t kept;
    unsigned char *rest;
} Connection;

static unsigned char room[ROOM];

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as expected");
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *room_for(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (memory == NULL) die("memory");
    return memory;
}

static struct sockaddr_in address(const char *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void without_delay(int socket) {
    int on = 1;
    if (setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) die("TCP_NODELAY");
}

static int listening(const char *port) {
    struct sockaddr_in a = address(port);
    int on = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s < 0 || setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) die("socket");
    if (bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 4096) < 0) die("listen");
    return s;
}

/* Connected, and not blocking from then on. */
static int connected(const char *port, int opaque) {
    struct sockaddr_in a = address(port);
    const unsigned char first = OPAQUE;
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&a, sizeof a) < 0) die("connect");
    without_delay(s);
    if (opaque && send(s, &first, 1, MSG_NOSIGNAL) != 1) die("send");
    return s;
}

static void watch(int poll, int operation, int socket, uint32_t events, void *what) {
    struct epoll_event e = {.events = events, .data.ptr = what};
    if (epoll_ctl(poll, operation, socket, &e) < 0) die("epoll");
}

/* All of it; the peer is one that reads, so a full buffer empties. */
static int send_all(int socket, const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t sent = send(socket, at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            usleep(50);
            continue;
        }
        if (sent < 0) return 0;
        at += sent;
        size -= (size_t)sent;
    }
    return 1;
}

/* What was left and what has come, in `room`: how much, 0 when there is nothing new, -1 when it has ended. */
static ssize_t heard(Connection *c) {
    memcpy(room, c->rest, c->kept);
    ssize_t came = recv(c->socket, room + c->kept, ROOM - c->kept, MSG_DONTWAIT);
    if (came < 0 && errno == EAGAIN) return 0;
    return came <= 0 ? -1 : (ssize_t)c->kept + came;
}

static void keep(Connection *c, const unsigned char *rest, size_t size) {
    if (size > c->kept) {
        c->rest = realloc(c->rest, size);
        if (c->rest == NULL) die("memory");
    }
    memcpy(c->rest, rest, size);
    c->kept = size;
}

/* The server: `take` is given what has come, answers, and says how much it used; -1 ends the connection. */
static void serve(const char *port, size_t size, ssize_t (*take)(Connection *, unsigned char *, size_t)) {
    struct epoll_event events[EVENTS];
    int poll = epoll_create1(0), listener = listening(port);
    watch(poll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            Connection *c = events[i].data.ptr;
            if (c == NULL) {
                int s = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (s < 0) continue;
                without_delay(s);
                c = room_for(size);
                c->socket = s;
                watch(poll, EPOLL_CTL_ADD, s, EPOLLIN, c);
                continue;
            }
            ssize_t came = heard(c), used = came;
            if (came > 0) {
                int dropped = !c->begun && room[0] == OPAQUE;
                c->begun = 1;
                used = take(c, room + dropped, (size_t)(came - dropped));
                if (used >= 0) keep(c, room + dropped + used, (size_t)(came - dropped - used));
            }
            if (used < 0) {
                close(c->socket);
                free(c->rest);
                free(c);
            }
        }
    }
}

/* Latencies in seconds, as many as there are. */
typedef struct {
    float *each;
    size_t count, room;
} Latencies;

static void note(Latencies *l, double seconds) {
    if (l->count == l->room) {
        l->room = l->room ? 2 * l->room : 1 << 16;
        l->each = realloc(l->each, l->room * sizeof *l->each);
        if (l->each == NULL) die("memory");
    }
    l->each[l->count++] = (float)seconds;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* `"p50_ms": 0.1, "p99_ms": 0.2`, null without any. */
static void print_percentiles(Latencies *l) {
    if (l->count == 0) {
        printf("\"p50_ms\": null, \"p99_ms\": null");
        return;
    }
    qsort(l->each, l->count, sizeof *l->each, ascending);
    printf("\"p50_ms\": %.6f, \"p99_ms\": %.6f", l->each[l->count / 2] * 1e3, l->each[l->count * 99 / 100] * 1e3);
}
