/*
 * The floor that tests/bench/requests.py measures against: a FUSE server in C
 * that does no more for a request than libfuse's low-level interface asks of it.
 *
 * One directory with one file, "f", whose memory is a memfd. Attributes are
 * never cached, so that each fstat is a request; the file is open for direct
 * I/O, so that each read is one, and each is refused with EINVAL.
 *
 * usage: floor MOUNTPOINT    (stays in the foreground, until it is unmounted)
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312

#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_INODE = FUSE_ROOT_ID + 1, FILE_SIZE = 1 << 20 };

static int memory = -1;

static struct stat attributes(fuse_ino_t inode)
{
	struct stat st = { .st_ino = inode, .st_nlink = 1 };

	if (inode == FUSE_ROOT_ID) {
		st.st_mode = S_IFDIR | 0755;
	} else {
		st.st_mode = S_IFREG | 0600;
		st.st_size = FILE_SIZE;
	}
	return st;
}

static void floor_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {
		.ino = FILE_INODE,
		.attr = attributes(FILE_INODE),
		.entry_timeout = 3600,
	};

	if (parent == FUSE_ROOT_ID && strcmp(name, "f") == 0)
		fuse_reply_entry(request, &entry);
	else
		fuse_reply_err(request, ENOENT);
}

static void floor_getattr(fuse_req_t request, fuse_ino_t inode,
			  struct fuse_file_info *file)
{
	struct stat st = attributes(inode);

	(void)file;
	fuse_reply_attr(request, &st, 0);
}

static void floor_open(fuse_req_t request, fuse_ino_t inode,
		       struct fuse_file_info *file)
{
	(void)inode;
	file->direct_io = 1;
	fuse_reply_open(request, file);
}

static void floor_read(fuse_req_t request, fuse_ino_t inode, size_t size,
		       off_t offset, struct fuse_file_info *file)
{
	(void)inode, (void)size, (void)offset, (void)file;
	fuse_reply_err(request, EINVAL);
}

static void floor_fallocate(fuse_req_t request, fuse_ino_t inode, int mode,
			    off_t offset, off_t length, struct fuse_file_info *file)
{
	(void)inode, (void)file;
	fuse_reply_err(request, fallocate(memory, mode, offset, length) ? errno : 0);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = floor_lookup,
	.getattr = floor_getattr,
	.open = floor_open,
	.read = floor_read,
	.fallocate = floor_fallocate,
};

int main(int argc, char *argv[])
{
	char *options[] = { argv[0], "-ofsname=floor" };
	struct fuse_args arguments = FUSE_ARGS_INIT(2, options);
	struct fuse_session *session;
	int status = 1;

	if (argc != 2) {
		fprintf(stderr, "usage: %s MOUNTPOINT\n", argv[0]);
		return 2;
	}
	memory = memfd_create("floor", MFD_CLOEXEC);
	if (memory < 0 || ftruncate(memory, FILE_SIZE) < 0) {
		perror("memfd");
		return 1;
	}
	session = fuse_session_new(&arguments, &operations, sizeof(operations), NULL);
	if (!session)
		return 1;
	if (fuse_session_mount(session, argv[1]) == 0) {
		status = fuse_session_loop(session) < 0;
		fuse_session_unmount(session);
	}
	fuse_session_destroy(session);
	return status;
}
