package kernel

// standIn says which LSM hooks a system call asks, so that failing one of them
// fails the call on kernels that let nothing else be failed. The program looks
// at the number of the system call too, so that no other one that asks the same
// hook is hit. The first hook that the kernel has is taken.
type standIn struct {
	hooks []string
	// misses says when the system call goes on in spite of the fault, and what
	// else is different from failing it at its entry. Empty: nothing much.
	misses string
}

const (
	afterPath          = "the paths are looked up first, so that a missing file answers ENOENT"
	eachComponent      = "it is asked for each directory of the path: one call can count several times"
	descriptorFirst    = "the descriptor is looked up first, so that a wrong one answers EBADF"
	descriptorAndRange = "the descriptor is looked up first, and a call of 0 bytes or on a wrong range is answered before"
)

// standIns are by the name of the system call. What is not here has no hook
// that is asked exactly when the call is made (fsync, close, futex, epoll_wait...).
var standIns = map[string]standIn{
	"mount":         {[]string{"sb_mount"}, "the mount point is looked up first; fsmount and move_mount are other system calls"},
	"umount2":       {[]string{"sb_umount"}, "the mount point is looked up first"},
	"pivot_root":    {[]string{"sb_pivotroot"}, afterPath},
	"move_mount":    {[]string{"move_mount"}, afterPath},
	"statfs":        {[]string{"sb_statfs"}, afterPath},
	"fstatfs":       {[]string{"sb_statfs"}, ""},
	"chroot":        {[]string{"path_chroot"}, afterPath},
	"mkdir":         {[]string{"path_mkdir", "inode_mkdir"}, "the parent is looked up first, and what exists answers EEXIST"},
	"mkdirat":       {[]string{"path_mkdir", "inode_mkdir"}, "the parent is looked up first, and what exists answers EEXIST"},
	"rmdir":         {[]string{"path_rmdir", "inode_rmdir"}, afterPath},
	"unlink":        {[]string{"path_unlink", "inode_unlink"}, afterPath},
	"unlinkat":      {[]string{"path_unlink", "inode_unlink"}, afterPath + "; not with AT_REMOVEDIR"},
	"rename":        {[]string{"path_rename", "inode_rename"}, afterPath},
	"renameat":      {[]string{"path_rename", "inode_rename"}, afterPath},
	"renameat2":     {[]string{"path_rename", "inode_rename"}, afterPath},
	"link":          {[]string{"path_link", "inode_link"}, afterPath},
	"linkat":        {[]string{"path_link", "inode_link"}, afterPath},
	"symlink":       {[]string{"path_symlink", "inode_symlink"}, "the parent is looked up first"},
	"symlinkat":     {[]string{"path_symlink", "inode_symlink"}, "the parent is looked up first"},
	"mknod":         {[]string{"path_mknod", "inode_mknod"}, "the parent is looked up first"},
	"mknodat":       {[]string{"path_mknod", "inode_mknod"}, "the parent is looked up first"},
	"open":          {[]string{"file_open"}, afterPath + "; a file that O_CREAT makes is there afterwards"},
	"openat":        {[]string{"file_open"}, afterPath + "; a file that O_CREAT makes is there afterwards"},
	"openat2":       {[]string{"file_open"}, afterPath + "; a file that O_CREAT makes is there afterwards"},
	"creat":         {[]string{"file_open"}, afterPath + "; the file is there afterwards"},
	"truncate":      {[]string{"path_truncate"}, afterPath},
	"chmod":         {[]string{"path_chmod"}, afterPath},
	"fchmod":        {[]string{"path_chmod"}, ""},
	"fchmodat":      {[]string{"path_chmod"}, afterPath},
	"chown":         {[]string{"path_chown"}, afterPath},
	"lchown":        {[]string{"path_chown"}, afterPath},
	"fchown":        {[]string{"path_chown"}, ""},
	"fchownat":      {[]string{"path_chown"}, afterPath},
	"stat":          {[]string{"inode_getattr"}, afterPath},
	"lstat":         {[]string{"inode_getattr"}, afterPath},
	"fstat":         {[]string{"inode_getattr"}, ""},
	"newfstatat":    {[]string{"inode_getattr"}, afterPath},
	"statx":         {[]string{"inode_getattr"}, afterPath},
	"access":        {[]string{"inode_permission"}, eachComponent},
	"faccessat":     {[]string{"inode_permission"}, eachComponent},
	"faccessat2":    {[]string{"inode_permission"}, eachComponent},
	"chdir":         {[]string{"inode_permission"}, eachComponent},
	"readlink":      {[]string{"inode_readlink"}, afterPath},
	"readlinkat":    {[]string{"inode_readlink"}, afterPath},
	"setxattr":      {[]string{"inode_setxattr"}, afterPath},
	"fsetxattr":     {[]string{"inode_setxattr"}, ""},
	"getxattr":      {[]string{"inode_getxattr"}, afterPath},
	"fgetxattr":     {[]string{"inode_getxattr"}, ""},
	"listxattr":     {[]string{"inode_listxattr"}, afterPath},
	"flistxattr":    {[]string{"inode_listxattr"}, ""},
	"removexattr":   {[]string{"inode_removexattr"}, afterPath},
	"fremovexattr":  {[]string{"inode_removexattr"}, ""},
	"read":          {[]string{"file_permission"}, descriptorAndRange},
	"pread64":       {[]string{"file_permission"}, descriptorAndRange},
	"readv":         {[]string{"file_permission"}, descriptorAndRange},
	"preadv":        {[]string{"file_permission"}, descriptorAndRange},
	"write":         {[]string{"file_permission"}, descriptorAndRange},
	"pwrite64":      {[]string{"file_permission"}, descriptorAndRange},
	"writev":        {[]string{"file_permission"}, descriptorAndRange},
	"pwritev":       {[]string{"file_permission"}, descriptorAndRange},
	"getdents64":    {[]string{"file_permission"}, descriptorAndRange},
	"fallocate":     {[]string{"file_permission"}, descriptorAndRange},
	"ioctl":         {[]string{"file_ioctl"}, descriptorFirst},
	"fcntl":         {[]string{"file_fcntl"}, descriptorFirst},
	"flock":         {[]string{"file_lock"}, descriptorFirst},
	"mmap":          {[]string{"mmap_file"}, "mmap_file is also asked for maps without a file"},
	"mprotect":      {[]string{"file_mprotect"}, "the memory must be mapped; one call can count several times"},
	"execve":        {[]string{"bprm_check_security"}, "the file is opened first; a script and its interpreter count each"},
	"execveat":      {[]string{"bprm_check_security"}, "the file is opened first; a script and its interpreter count each"},
	"fork":          {[]string{"task_alloc"}, ""},
	"vfork":         {[]string{"task_alloc"}, ""},
	"clone":         {[]string{"task_alloc"}, ""},
	"clone3":        {[]string{"task_alloc"}, ""},
	"kill":          {[]string{"task_kill"}, "for a process group each member is asked, and one that is reached is success"},
	"tgkill":        {[]string{"task_kill"}, ""},
	"setpriority":   {[]string{"task_setnice"}, ""},
	"prlimit64":     {[]string{"task_setrlimit"}, "only where limits are set"},
	"setrlimit":     {[]string{"task_setrlimit"}, ""},
	"clock_settime": {[]string{"settime"}, ""},
	"settimeofday":  {[]string{"settime"}, ""},
	"socket":        {[]string{"socket_create"}, ""},
	"socketpair":    {[]string{"socket_create"}, ""},
	"bind":          {[]string{"socket_bind"}, descriptorFirst},
	"connect":       {[]string{"socket_connect"}, descriptorFirst},
	"listen":        {[]string{"socket_listen"}, descriptorFirst},
	"accept":        {[]string{"socket_accept"}, descriptorFirst},
	"accept4":       {[]string{"socket_accept"}, descriptorFirst},
	"sendto":        {[]string{"socket_sendmsg"}, descriptorFirst},
	"sendmsg":       {[]string{"socket_sendmsg"}, descriptorFirst},
	"sendmmsg":      {[]string{"socket_sendmsg"}, descriptorFirst + "; what was sent before is reported as sent"},
	"recvfrom":      {[]string{"socket_recvmsg"}, descriptorFirst},
	"recvmsg":       {[]string{"socket_recvmsg"}, descriptorFirst},
	"recvmmsg":      {[]string{"socket_recvmsg"}, descriptorFirst + "; what was received before is reported as received"},
	"getsockopt":    {[]string{"socket_getsockopt"}, descriptorFirst},
	"setsockopt":    {[]string{"socket_setsockopt"}, descriptorFirst},
	"getsockname":   {[]string{"socket_getsockname"}, descriptorFirst},
	"getpeername":   {[]string{"socket_getpeername"}, descriptorFirst},
	"shutdown":      {[]string{"socket_shutdown"}, descriptorFirst},
	"msgget":        {[]string{"msg_queue_alloc_security", "msg_queue_associate"}, "only where a queue is made"},
	"semget":        {[]string{"sem_alloc_security", "sem_associate"}, "only where a set is made"},
	"shmget":        {[]string{"shm_alloc_security", "shm_associate"}, "only where a segment is made"},
}

// syscallFunctions are the kernel's names of system calls where they differ from
// the name in user space (arch/x86/entry/syscalls/syscall_64.tbl,
// include/uapi/asm-generic/unistd.h).
var syscallFunctions = map[string]string{
	"umount2": "umount", "stat": "newstat", "lstat": "newlstat", "fstat": "newfstat", "uname": "newuname",
	"sendfile": "sendfile64", "fadvise64": "fadvise64", "pread": "pread64", "pwrite": "pwrite64",
}
