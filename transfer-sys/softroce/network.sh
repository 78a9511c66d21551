# The guest's RDMA devices; sourced before the command. MTU 4200 gives an RDMA MTU of 4096.
ip link set lo up
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
rdma_on() { # NUMBER: an address for rdmaN, and the device rxeN on it
    ip link set "rdma$1" mtu 4200 up
    ip addr add "$2/24" dev "rdma$1"
    rdma link add "rxe$1" type rxe netdev "rdma$1" || exit 125
}
if [ "$GUESTS" = 2 ]; then
    ip link set "$(basename /sys/class/net/e*)" name rdma0
    rdma_on 0 "$GUEST_IP"
else
    # Both ends of the wire are in one namespace: rxe binds the outgoing interface, so packets do cross it, and
    # accept_local lets the other end take a packet that comes from an address of its own host.
    ip link add rdma0 type veth peer name rdma1
    for i in 0 1; do
        echo 1 > /proc/sys/net/ipv4/conf/rdma$i/accept_local
        echo 0 > /proc/sys/net/ipv4/conf/rdma$i/rp_filter
    done
    rdma_on 0 10.77.0.1
    rdma_on 1 10.77.0.2
    ip neigh replace 10.77.0.2 lladdr "$(cat /sys/class/net/rdma1/address)" nud permanent dev rdma0
    ip neigh replace 10.77.0.1 lladdr "$(cat /sys/class/net/rdma0/address)" nud permanent dev rdma1
fi
