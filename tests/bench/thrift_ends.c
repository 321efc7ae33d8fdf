/* Both ends of the Thrift measurements, in the strict binary protocol, framed or buffered (unframed):
 *
 *     thrift_ends serve PORT
 *     thrift_ends calls PORT framed|buffered SECONDS CONNECTIONS 0|1   one call in flight on each
 *
 * The service has one method, `string echo(1: string text)`. The last argument of `calls` is 1 where each
 * connection is to begin with the byte that makes it opaque. It prints one line of JSON. Messages are as
 * thrift-binary-protocol.md and thrift-rpc.md of the specification say.
 */
#include "ends.h"

enum { VERSION = 0x80010000, CALL = 1, REPLY = 2, STRING = 11, TEXT = 100, NAME = 4 };
/* version and type, name's length, name, sequence id | field type, id, length, text | stop */
enum { SEQUENCE_AT = 4 + 4 + NAME, FIELD_AT = SEQUENCE_AT + 4, TEXT_AT = FIELD_AT + 1 + 2 + 4 };
enum { SIZE = TEXT_AT + TEXT + 1, LARGEST = 4 + SIZE };

static uint32_t number_at(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put_number(unsigned char *at, uint32_t number) {
    at[0] = (unsigned char)(number >> 24), at[1] = (unsigned char)(number >> 16);
    at[2] = (unsigned char)(number >> 8), at[3] = (unsigned char)number;
}

static size_t message(unsigned char *at, uint32_t type, uint32_t sequence, int field, const void *text, size_t size) {
    put_number(at, VERSION | type);
    put_number(at + 4, NAME);
    memcpy(at + 8, "echo", NAME);
    put_number(at + SEQUENCE_AT, sequence);
    at[FIELD_AT] = STRING, at[FIELD_AT + 1] = 0, at[FIELD_AT + 2] = (unsigned char)field;
    put_number(at + FIELD_AT + 3, (uint32_t)size);
    memcpy(at + TEXT_AT, text, size);
    at[TEXT_AT + size] = 0;
    return TEXT_AT + size + 1;
}

/* The size of the message that is there, 0 when it is not whole, -1 when it is another one. */
static ssize_t message_size(const unsigned char *at, size_t there, uint32_t type, int field) {
    if (there < TEXT_AT + 1) return 0;
    if (number_at(at) != (VERSION | type) || number_at(at + 4) != NAME || memcmp(at + 8, "echo", NAME)) return -1;
    if (at[FIELD_AT] != STRING || at[FIELD_AT + 1] || at[FIELD_AT + 2] != field) return -1;
    size_t text = number_at(at + FIELD_AT + 3);
    if (text > TEXT) return -1;
    if (there < TEXT_AT + text + 1) return 0;
    return at[TEXT_AT + text] ? -1 : (ssize_t)(TEXT_AT + text + 1);
}

static ssize_t echo(Connection *c, unsigned char *data, size_t there) {
    unsigned char answer[LARGEST];
    size_t used = 0;
    while (there - used >= 4) {
        unsigned char *at = data + used;
        size_t frame = at[0] ? 0 : 4; /* a frame's length begins with 0, a message with 0x80 */
        if (there - used < frame) break;
        ssize_t size = message_size(at + frame, there - used - frame, CALL, 1);
        if (size < 0 || (size > 0 && frame && number_at(at) != (uint32_t)size)) return -1;
        if (size == 0) break;
        size_t text = (size_t)size - TEXT_AT - 1;
        size_t whole = message(answer + frame, REPLY, number_at(at + frame + SEQUENCE_AT), 0, at + frame + TEXT_AT, text);
        if (frame) put_number(answer, (uint32_t)whole);
        if (!send_all(c->socket, answer, frame + whole)) return -1;
        used += frame + (size_t)size;
    }
    return (ssize_t)used;
}

typedef struct {
    Connection connection;
    uint32_t sequence;
    double asked;
    char text[TEXT];
} Caller;

static void call(Caller *c, size_t frame) {
    unsigned char asked[LARGEST];
    c->sequence++;
    memcpy(c->text, &c->sequence, sizeof c->sequence); /* no two calls carry the same */
    size_t size = message(asked + frame, CALL, c->sequence, 1, c->text, TEXT);
    if (frame) put_number(asked, (uint32_t)size);
    c->asked = now();
    if (!send_all(c->connection.socket, asked, frame + size)) die("send");
}

static void calls(const char *port, int framed, double seconds, int connections, int opaque) {
    struct epoll_event events[EVENTS];
    size_t frame = framed ? 4 : 0, answered = 0, wrong = 0, in_flight = (size_t)connections;
    Latencies latencies = {0};
    int poll = epoll_create1(0);
    Caller *callers = room_for((size_t)connections * sizeof *callers);
    for (int i = 0; i < connections; i++) {
        Caller *c = &callers[i];
        c->connection.socket = connected(port, opaque);
        c->sequence = (uint32_t)i << 24;
        memset(c->text, 'a' + i % 26, TEXT);
        watch(poll, EPOLL_CTL_ADD, c->connection.socket, EPOLLIN, c);
    }
    double start = now(), end = start + seconds, last = start;
    for (int i = 0; i < connections; i++) call(&callers[i], frame);
    while (in_flight) {
        int count = epoll_wait(poll, events, EVENTS, PATIENCE_SECONDS * 1000);
        errno = 0;
        if (count <= 0) die("a call without an answer for 30 s");
        for (int i = 0; i < count; i++) {
            Caller *c = events[i].data.ptr;
            ssize_t came = heard(&c->connection);
            if (came == 0) continue;
            errno = 0;
            if (came < 0) die("connection was closed");
            ssize_t size = (size_t)came < frame ? 0 : message_size(room + frame, (size_t)came - frame, REPLY, 0);
            if (size < 0) die("answer");
            if (size == 0) {
                keep(&c->connection, room, (size_t)came);
                continue;
            }
            keep(&c->connection, room, 0);
            last = now();
            note(&latencies, last - c->asked);
            answered++;
            wrong += (size_t)came != frame + (size_t)size || number_at(room + frame + SEQUENCE_AT) != c->sequence ||
                     memcmp(room + frame + TEXT_AT, c->text, TEXT) || (frame && number_at(room) != (uint32_t)size);
            if (last < end)
                call(c, frame);
            else
                in_flight--;
        }
    }
    printf("{\"calls\": %zu, \"wrong\": %zu, \"seconds\": %.6f, ", answered, wrong, last - start);
    print_percentiles(&latencies);
    printf("}\n");
}

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "serve"))
        serve(arguments[2], sizeof(Connection), echo);
    else if (count == 7 && !strcmp(arguments[1], "calls"))
        calls(arguments[2], !strcmp(arguments[3], "framed"), atof(arguments[4]), atoi(arguments[5]), atoi(arguments[6]));
    else
        die("usage: see the head of the source");
    return 0;
}
