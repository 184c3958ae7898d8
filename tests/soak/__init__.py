"""The soak: a real cluster under faults, and whether it kept its promises. `make soak MINUTES= SEED=` runs it.

    schedule   which faults, of what and when: a pure function of the seed
    links      TCP proxies between everybody: who can hear whom
    clocks     wall clocks that can be set, one for each node
    cluster    three members of etcd and four nodes as processes, wired through the links
    disks      a small file system for each node: filled, and its chunk files damaged
    operator   scrubs, changes of the layout, a node that is removed and added back
    nemesis    carries the schedule out, and heals
    values     bytes that say themselves whether they are right
    history    what the clients asked and saw
    clients    writers and readers of contended keys;  plain_http: the same without our client
    access     the tokens of all clients, and one who tries what his do not allow
    snapshots  made, read and given up;  what each shows stays the same
    ledger     keys that are written once, with bytes that are known, and listings of them
    checks     what has to hold of all that
    run        one soak from beginning to end

One seed decides all choices. What the machine makes of them is its own, so a seed that failed once need not fail again, but
it brings the same faults in the same order, and what was seen is printed.
"""
