// SPDX-License-Identifier: Apache-2.0
// The floor: what the kernel takes for the system calls alone.
//
// It makes those that Tapster cannot do without, and nothing else: no name is looked
// for, nothing is checked, recorded or proved. One order a line on stdin; the answer
// is the nanoseconds that it took, or "error: ...".
//
//     make NAME IFINDEX                       a tap, and no more
//     acquire NAME IFINDEX MAC BRIDGE ALIAS   the same, on its bridge and up
//     acquire-no-ipv6 ...                     the same, with no IPv6 address
//     close IFINDEX                           what the VM does at its end, and
//                                             the kernel after it, within a second
//     release IFINDEX                         down and off its bridge
//     reap IFINDEX ...                        delete them as one group
//     delete IFINDEX                          delete one
//     ledger PATH                             record in this ledger from now on
//     acquire-recorded ...                    as Tapster does: look at the bridge,
//                                             ask for the name, record the lease, make
//                                             the tap, keep the host's IPv4 and IPv6
//                                             off it, connect it, record that it is
//                                             active
//     release-recorded IFINDEX                record it, look, down and off its bridge

#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/ip.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { GROUP = 0x5ca1ab1e, BATCH = 256, ROOM = 256 };

static int rtnl;

// Open taps. They have to be found by ifindex, outside what is timed.
static struct { unsigned ifindex; int fd; } taps[1 << 14];
static int tap_count;

static long long now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

// Messages, several to a send

static char packet[(BATCH + 1) * ROOM];
static size_t used;
static unsigned messages;

static struct ifinfomsg *begin(int type, unsigned ifindex)
{
	struct nlmsghdr *head = (struct nlmsghdr *)(packet + used);
	struct ifinfomsg *info = NLMSG_DATA(head);
	memset(head, 0, ROOM);
	head->nlmsg_len = NLMSG_LENGTH(sizeof *info);
	head->nlmsg_type = type;
	head->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	info->ifi_index = ifindex;
	return info;
}

static void attribute(int type, const void *value, size_t length)
{
	struct nlmsghdr *head = (struct nlmsghdr *)(packet + used);
	struct rtattr *one = (struct rtattr *)(packet + used + NLMSG_ALIGN(head->nlmsg_len));
	one->rta_type = type;
	one->rta_len = RTA_LENGTH(length);
	memcpy(RTA_DATA(one), value, length);
	head->nlmsg_len = NLMSG_ALIGN(head->nlmsg_len) + RTA_ALIGN(one->rta_len);
}

static void end(void)
{
	used += NLMSG_ALIGN(((struct nlmsghdr *)(packet + used))->nlmsg_len);
	messages++;
}

// 0, or -1 with errno of the first that failed.
static int submit(void)
{
	static char answers[1 << 16];
	unsigned left = messages;
	int failed = 0;

	ssize_t sent = send(rtnl, packet, used, 0);
	used = messages = 0;
	if (sent < 0)
		return -1;
	while (left) {
		ssize_t length = recv(rtnl, answers, sizeof answers, 0);
		if (length < 0)
			return -1;
		for (struct nlmsghdr *head = (void *)answers; NLMSG_OK(head, length);
		     head = NLMSG_NEXT(head, length)) {
			struct nlmsgerr *said = NLMSG_DATA(head);
			if (said->error && !failed)
				failed = -said->error;
			left--;
		}
	}
	errno = failed;
	return failed ? -1 : 0;
}

// Orders

static int make(const char *name, unsigned ifindex)
{
	struct ifreq wanted = {
		.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL,
	};
	strncpy(wanted.ifr_name, name, IFNAMSIZ - 1);
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (ioctl(fd, TUNSETIFINDEX, &ifindex) || ioctl(fd, TUNSETIFF, &wanted) ||
	    ioctl(fd, TUNSETPERSIST, 1)) {
		int saved = errno;
		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

static int wire(unsigned ifindex, const unsigned char *mac, unsigned bridge,
		const char *alias)
{
	struct ifinfomsg *info = begin(RTM_SETLINK, ifindex);
	info->ifi_flags = info->ifi_change = IFF_UP;
	attribute(IFLA_ADDRESS, mac, 6);
	attribute(IFLA_IFALIAS, alias, strlen(alias));
	attribute(IFLA_MASTER, &bridge, sizeof bridge);
	end();
	return submit();
}

// The host is to give itself no IPv6 address on it: for before it comes up.
static void no_ipv6(unsigned ifindex)
{
	struct {
		struct rtattr family, mode;
		unsigned char value, padding[3];
	} nest = {
		{ sizeof nest, AF_INET6 | NLA_F_NESTED },
		{ RTA_LENGTH(1), IFLA_INET6_ADDR_GEN_MODE },
		IN6_ADDR_GEN_MODE_NONE, {},
	};
	begin(RTM_SETLINK, ifindex);
	attribute(IFLA_AF_SPEC | NLA_F_NESTED, &nest, sizeof nest);
	end();
}

static int release(unsigned ifindex)
{
	unsigned none = 0;
	begin(RTM_SETLINK, ifindex)->ifi_change = IFF_UP;
	attribute(IFLA_MASTER, &none, sizeof none);
	end();
	return submit();
}

static int reap(const unsigned *ifindexes, unsigned count)
{
	unsigned group = GROUP;
	for (unsigned n = 0; n < count; n++) {
		begin(RTM_SETLINK, ifindexes[n]);
		attribute(IFLA_GROUP, &group, sizeof group);
		end();
	}
	begin(RTM_DELLINK, 0);
	attribute(IFLA_GROUP, &group, sizeof group);
	end();
	return submit();
}

// To ask for a link makes the kernel account for a lost carrier (linkwatch_sync_dev() in
// net/core/rtnetlink.c). Otherwise the kernel does so in the background, later.
static int settle(unsigned ifindex)
{
	static char answer[1 << 16];
	struct nlmsghdr *head = (struct nlmsghdr *)packet;
	begin(RTM_GETLINK, ifindex);
	head->nlmsg_flags = NLM_F_REQUEST;
	if (send(rtnl, packet, head->nlmsg_len, 0) < 0)
		return -1;
	return recv(rtnl, answer, sizeof answer, 0) < 0 ? -1 : 0;
}

static int delete(unsigned ifindex)
{
	begin(RTM_DELLINK, ifindex);
	end();
	return submit();
}

static void keep(unsigned ifindex, int fd)
{
	taps[tap_count].ifindex = ifindex;
	taps[tap_count++].fd = fd;
}

static int forget(unsigned ifindex)
{
	for (int n = 0; n < tap_count; n++)
		if (taps[n].ifindex == ifindex) {
			int fd = taps[n].fd;
			taps[n] = taps[--tap_count];
			return fd;
		}
	errno = ENODEV;
	return -1;
}

// The ledger: what a transaction of Tapster writes, with statements prepared once.

enum { BEGIN, COUNT, TAKE, INSERT, ACTIVATE, SELECT, RELEASE, COMMIT, STATEMENTS };

static sqlite3 *db;
static sqlite3_stmt *statements[STATEMENTS];
static const char *texts[STATEMENTS] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COUNT] = "UPDATE meta SET value = value + 1 WHERE key = 'next_ifindex'",
	[TAKE] = "UPDATE free SET first = first + 1 WHERE template = 1",
	[INSERT] = "INSERT INTO lease (id, netns, name, ifindex, kind, state, owner, mac,"
		   " queues, created, fin_wait, manager) VALUES"
		   " (?1, 1, ?2, ?1, 'tap', 'reserved', '', ?3, 1, 1.0, 5.0, 1)",
	[ACTIVATE] = "UPDATE lease SET state = 'active', manager = NULL WHERE id = ?1",
	[SELECT] = "SELECT * FROM lease JOIN netns ON netns.id = netns WHERE lease.id = ?1",
	[RELEASE] = "UPDATE lease SET state = 'fin_wait', deadline = 1e9, released = 1.0"
		    " WHERE id = ?1",
	[COMMIT] = "COMMIT",
};

static int open_ledger(const char *path)
{
	if (sqlite3_open(path, &db) ||
	    sqlite3_exec(db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL))
		return -1;
	for (int n = 0; n < STATEMENTS; n++)
		if (sqlite3_prepare_v2(db, texts[n], -1, &statements[n], NULL))
			return -1;
	return 0;
}

static int run(int number, const char *id, const char *name, const char *mac)
{
	sqlite3_stmt *one = statements[number];
	int parameters = sqlite3_bind_parameter_count(one);
	if (parameters >= 1)
		sqlite3_bind_text(one, 1, id, -1, SQLITE_STATIC);
	if (parameters >= 3) {
		sqlite3_bind_text(one, 2, name, -1, SQLITE_STATIC);
		sqlite3_bind_text(one, 3, mac, -1, SQLITE_STATIC);
	}
	int result = sqlite3_step(one);
	sqlite3_reset(one);
	errno = EIO;
	return result == SQLITE_DONE || result == SQLITE_ROW ? 0 : -1;
}

static int reserve(const char *id, const char *name, const char *mac)
{
	return run(BEGIN, 0, 0, 0) || run(COUNT, 0, 0, 0) || run(TAKE, 0, 0, 0) ||
	       run(INSERT, id, name, mac) || run(SELECT, id, 0, 0) ||
	       run(COMMIT, 0, 0, 0);
}

static int change(int number, const char *id)
{
	return run(BEGIN, 0, 0, 0) || run(SELECT, id, 0, 0) || run(number, id, 0, 0) ||
	       run(COMMIT, 0, 0, 0);
}

// The device that has a name: none, for a name that is free.
static int look_for(const char *name)
{
	static char answer[1 << 16];
	struct nlmsghdr *head = (struct nlmsghdr *)packet;
	begin(RTM_GETLINK, 0);
	head->nlmsg_flags = NLM_F_REQUEST;
	attribute(IFLA_IFNAME, name, strlen(name) + 1);
	if (send(rtnl, packet, head->nlmsg_len, 0) < 0)
		return -1;
	return recv(rtnl, answer, sizeof answer, 0) < 0 ? -1 : 0;
}

// The host's IPv4 is to take nothing from it, and to answer nothing.
static void no_ipv4_and_ipv6(unsigned ifindex)
{
	struct {
		struct rtattr family, settings, filter;
		unsigned strict;
		struct rtattr ignore;
		unsigned all;
		struct rtattr family6, mode;
		unsigned char value, padding[3];
	} nest = {
		{ 24, AF_INET | NLA_F_NESTED },
		{ 20, IFLA_INET_CONF | NLA_F_NESTED },
		{ RTA_LENGTH(4), IPV4_DEVCONF_RP_FILTER }, 1,
		{ RTA_LENGTH(4), IPV4_DEVCONF_ARP_IGNORE }, 8,
		{ 12, AF_INET6 | NLA_F_NESTED },
		{ RTA_LENGTH(1), IFLA_INET6_ADDR_GEN_MODE },
		IN6_ADDR_GEN_MODE_NONE, {},
	};
	begin(RTM_SETLINK, ifindex);
	attribute(IFLA_AF_SPEC | NLA_F_NESTED, &nest, sizeof nest);
	end();
}

// Switch IPv6 off on it, by its name, which is looked up before and after.
static int switch_ipv6_off(unsigned ifindex)
{
	struct ifreq asked = { .ifr_ifindex = ifindex };
	char path[64 + IFNAMSIZ];
	if (ioctl(rtnl, SIOCGIFNAME, &asked))
		return -1;
	snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6",
		 asked.ifr_name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	int written = ioctl(rtnl, SIOCGIFNAME, &asked) ? -1 : write(fd, "1", 1);
	return close(fd) || written != 1 ? -1 : 0;
}

static int acquire_recorded(char **words, const unsigned char *mac)
{
	unsigned ifindex = atoi(words[1]), bridge = atoi(words[3]);
	if (settle(bridge) || look_for(words[0]) ||
	    reserve(words[1], words[0], words[2]))
		return -1;
	int fd = make(words[0], ifindex);
	if (fd < 0)
		return -1;
	no_ipv4_and_ipv6(ifindex);
	if (ioctl(fd, TUNSETOWNER, geteuid()) || submit() || switch_ipv6_off(ifindex) ||
	    wire(ifindex, mac, bridge, words[4]) || change(ACTIVATE, words[1])) {
		close(fd);
		return -1;
	}
	return fd;
}

// One order; the nanoseconds that it took, or -1 with errno.
static long long obey(char *line)
{
	char *verb = strtok(line, " \n");
	char *words[BATCH];
	unsigned count = 0;
	while (count < BATCH && (words[count] = strtok(NULL, " \n")))
		count++;

	long long before;
	int result = -1;
	errno = EINVAL;
	if (!verb) {
		return -1;
	} else if (!strcmp(verb, "make") && count == 2) {
		unsigned ifindex = atoi(words[1]);
		before = now();
		result = make(words[0], ifindex);
		before = now() - before;
		if (result >= 0)
			keep(ifindex, result);
	} else if (!strcmp(verb, "ledger") && count == 1) {
		before = 0;
		result = open_ledger(words[0]);
	} else if (!strcmp(verb, "acquire-recorded") && count == 5) {
		unsigned char mac[6];
		sscanf(words[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1,
		       mac + 2, mac + 3, mac + 4, mac + 5);
		before = now();
		result = acquire_recorded(words, mac);
		before = now() - before;
		if (result >= 0)
			keep(atoi(words[1]), result);
	} else if (!strcmp(verb, "release-recorded") && count == 1) {
		unsigned ifindex = atoi(words[0]);
		before = now();
		result = change(RELEASE, words[0]) || settle(ifindex) || release(ifindex);
		result = -result;
		before = now() - before;
	} else if (!strncmp(verb, "acquire", 7) && count == 5) {
		int ipv6 = strcmp(verb, "acquire-no-ipv6");
		unsigned ifindex = atoi(words[1]), bridge = atoi(words[3]);
		unsigned char mac[6];
		sscanf(words[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1,
		       mac + 2, mac + 3, mac + 4, mac + 5);
		before = now();
		int fd = make(words[0], ifindex);
		if (fd >= 0 && !ipv6)
			no_ipv6(ifindex);
		result = fd < 0 ? -1 : wire(ifindex, mac, bridge, words[4]);
		before = now() - before;
		if (fd >= 0)
			keep(ifindex, fd);
	} else if (!strcmp(verb, "close") && count == 1) {
		int fd = forget(atoi(words[0]));
		before = now();
		result = close(fd) ? -1 : settle(atoi(words[0]));
		before = now() - before;
	} else if (!strcmp(verb, "release") && count == 1) {
		before = now();
		result = release(atoi(words[0]));
		before = now() - before;
	} else if (!strcmp(verb, "reap") && count > 0) {
		unsigned ifindexes[BATCH];
		for (unsigned n = 0; n < count; n++)
			ifindexes[n] = atoi(words[n]);
		before = now();
		result = reap(ifindexes, count);
		before = now() - before;
	} else if (!strcmp(verb, "delete") && count == 1) {
		before = now();
		result = delete(atoi(words[0]));
		before = now() - before;
	}
	return result < 0 ? -1 : before;
}

int main(void)
{
	int on = 1;
	char *line = NULL;
	size_t room = 0;

	rtnl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	// An acknowledgement without the request in it, as Tapster asks for.
	if (rtnl < 0 || setsockopt(rtnl, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on)) {
		perror("netlink");
		return 1;
	}
	while (getline(&line, &room, stdin) > 0) {
		long long took = obey(line);
		if (took < 0)
			printf("error: %s\n", strerror(errno));
		else
			printf("%lld\n", took);
		fflush(stdout);
	}
	return 0;
}
