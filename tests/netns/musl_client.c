/* Resolves a name as a program linked against musl does, and prints its addresses, one a line. */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	char text[INET6_ADDRSTRLEN];

	if (argc != 2)
		return 2;
	int failure = getaddrinfo(argv[1], NULL, &hints, &list);
	if (failure) {
		puts(gai_strerror(failure));
		return 1;
	}
	for (struct addrinfo *one = list; one; one = one->ai_next) {
		void *address = one->ai_family == AF_INET
			? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
			: (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
		puts(inet_ntop(one->ai_family, address, text, sizeof text));
	}
	return 0;
}
