// What the Thrift service of the demo can do, and below it what a client built against a newer version expects.

struct Shelf {
    1: i32 row,
    2: list<string> labels,
}

exception NoSuchThing {
    1: string why,
    2: i32 similar,
}

service Stock {
    i32 count(1: string thing),
    list<Shelf> shelves(1: string thing),
    oneway void note(1: string thing),
    void reserve(1: string thing) throws (1: NoSuchThing missing),
    double price(1: string thing),
    void ship(1: string thing),
}

service NewerStock extends Stock {
    double weigh(1: string thing),
}
