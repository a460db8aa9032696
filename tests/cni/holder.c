// SPDX-License-Identifier: Apache-2.0
// Stand in for a VMM in a container: open a tap by name, say so, and hold it.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (argc != 2 || fd < 0)
		return 2;
	strncpy(request.ifr_name, argv[1], sizeof(request.ifr_name) - 1);
	if (ioctl(fd, TUNSETIFF, &request) < 0) {
		perror("TUNSETIFF");
		return 1;
	}
	puts("open");
	fflush(stdout);
	pause();
	return 0;
}
