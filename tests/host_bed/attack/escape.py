"""Run as root in a machine: tries to get out of it, or at something of the host's, in every way we know of.

    python3 - < escape.py        prints a line of JSON per attempt: name, tried, outcome, said

Each attempt runs in a child with a deadline.  It gives evidence when it got somewhere; an OSError, nothing, or
its death means that it did not.  Nothing here does harm where it works: what is written is what was read.

The environment says what the host has planted to be found: HOST_FILE a path, HOST_ABSTRACT the name of an
abstract socket, HOST_PORT a port of all its addresses, HOST_PID a process of the host, OTHER_AGENT a name.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import select
import signal
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

Attempt = Callable[[], str | None]
ATTEMPTS: dict[str, tuple[str, Attempt]] = {}
DEADLINE_S = 20.0
OURS = os.environ.get("HIVE_AGENT_STATE", "/tmp")
HOST_FILE = os.environ.get("HOST_FILE", "/nothing-planted")
OTHER = os.environ.get("OTHER_AGENT", "bob")
HOST_PID = int(os.environ.get("HOST_PID", "0"))

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = (
    {"unshare": 272, "clone": 56, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "ptrace": 101,
     "name_to_handle_at": 303, "open_by_handle_at": 304, "bpf": 321, "perf_event_open": 298, "add_key": 248,
     "keyctl": 250, "request_key": 249, "userfaultfd": 323, "init_module": 175, "finit_module": 313,
     "delete_module": 176, "kexec_load": 246, "process_vm_readv": 310, "syslog": 103, "reboot": 169,
     "iopl": 172, "settimeofday": 164, "swapon": 167, "acct": 163, "fanotify_init": 300, "vmsplice": 278,
     "personality": 135, "sethostname": 170, "quotactl": 179, "move_pages": 279}
    if X86 else
    {"unshare": 97, "clone": 220, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "ptrace": 117,
     "name_to_handle_at": 264, "open_by_handle_at": 265, "bpf": 280, "perf_event_open": 241, "add_key": 217,
     "keyctl": 219, "request_key": 218, "userfaultfd": 282, "init_module": 105, "finit_module": 273,
     "delete_module": 106, "kexec_load": 104, "process_vm_readv": 270, "syslog": 116, "reboot": 142,
     "iopl": 9999, "settimeofday": 170, "swapon": 224, "acct": 89, "fanotify_init": 262, "vmsplice": 75,
     "personality": 92, "sethostname": 161, "quotactl": 60, "move_pages": 239}
) | {"io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "fsconfig": 431, "clone3": 435, "pidfd_getfd": 438,
     "mount_setattr": 442, "pidfd_open": 434}  # fmt: skip
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
NEWNS, NEWUSER, NEWNET, NEWPID = 0x20000, 0x10000000, 0x40000000, 0x20000000


def attempt(tried: str) -> Callable[[Attempt], Attempt]:
    def note(function: Attempt) -> Attempt:
        ATTEMPTS[function.__name__] = (tried, function)
        return function

    return note


def call(name: str, *arguments: object) -> int:
    words = [
        ctypes.c_char_p(word) if isinstance(word, bytes)
        else word if not isinstance(word, int) else ctypes.c_long(word)
        for word in arguments
    ]  # fmt: skip
    done: int = libc.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), flags, data.encode())


@contextlib.contextmanager
def mounted(source: str, kind: str, flags: int = 0, data: str = "") -> Iterator[str]:
    target = tempfile.mkdtemp(dir="/tmp")
    mount(source, target, kind, flags, data)
    yield target  # the child's death ends it: it has mounts of its own


def own_mounts() -> None:
    call("unshare", NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def is_there(path: str) -> str | None:
    return f"{path} is seen" if os.path.lexists(path) else None


def opens_for_writing(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def allowed_families(*wanted: tuple[int, int, int]) -> str | None:
    made = []
    for family, kind, protocol in wanted:
        with contextlib.suppress(OSError):
            socket.socket(family, kind, protocol).close()
            made.append(f"{family}/{kind}/{protocol}")
    return ", ".join(made) or None


def seen_elsewhere(*roots: str) -> str | None:
    for root in roots:
        if (found := is_there(root + HOST_FILE)) is not None:
            return found
    return None


# ── sockets ─────────────────────────────────────────────────────────────────────────────────────


@attempt("raw sockets of IPv4 and IPv6")
def raw_sockets() -> str | None:
    return allowed_families(*((family, 3, number) for family in (2, 10) for number in (1, 6, 17, 58, 255)))


@attempt("AF_PACKET sockets")
def packet_sockets() -> str | None:
    return allowed_families((17, 3, 0x300), (17, 2, 0x300))


@attempt("AF_VSOCK, to the hypervisor or another guest")
def vsock() -> str | None:
    return allowed_families((40, 1, 0), (40, 2, 0), (40, 5, 0))


@attempt("sockets of every family that is neither unix, inet nor netlink")
def rare_families() -> str | None:
    return allowed_families(
        *(
            (family, kind, 0)
            for family in range(1, 48)
            if family not in {1, 2, 10, 16}
            for kind in (1, 2, 3, 5)
        )
    )


@attempt("netlink of the audit system and of nftables, new links, new routes")
def netlink() -> str | None:
    audit = socket.socket(16, 3, 9)
    audit.bind((0, 0))
    # AUDIT_GET
    audit.settimeout(1)
    audit.send(struct.pack("=IHHII", 16, 1000, 5, 1, 0))
    kind, reply = struct.unpack_from("=HHIIi", audit.recv(4096), 4)[0::4]
    return None if kind == 2 and reply < 0 else f"the audit system answers {kind}"


@attempt("a service on the host's loopback and on all its addresses")
def host_service() -> str | None:
    for address in ("127.0.0.1", "127.0.0.53", "10.213.0.1", "192.0.2.1", "169.254.169.254"):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, int(os.environ.get("HOST_PORT", "1"))), 0.5) as service,
        ):
            return f"{address} answers {service.recv(100)!r}"
    return None


@attempt("an abstract socket of the host")
def host_abstract_socket() -> str | None:
    client = socket.socket(socket.AF_UNIX)
    client.connect("\0" + os.environ.get("HOST_ABSTRACT", "nothing"))
    return f"it answers {client.recv(100)!r}"


@attempt("any abstract socket that /proc/net/unix shows and that is not this machine's")
def listed_abstract_sockets() -> str | None:
    with open("/proc/net/unix") as file:
        names = {line.split()[7] for line in file.readlines()[1:] if len(line.split()) > 7}
    return ", ".join(name for name in sorted(names) if "host-" in name) or None


@attempt("the operators' verbs on any socket that can be reached")
def operator_verbs() -> str | None:
    for directory, _, files in os.walk("/run"):
        for name in files:
            path = os.path.join(directory, name)
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                continue
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
                client.settimeout(0.5)
                client.connect(path)
                client.sendall(b'{"cmd":"list"}\n')
                if b'"agents"' in (said := client.recv(4096)):
                    return f"{path} says {said[:80]!r}"
    return is_there("/run/hyperhive") or is_there("/run/hive/host.sock")


# ── devices ─────────────────────────────────────────────────────────────────────────────────────


@attempt("mknod of disks, memory, ports, tun and loop devices, in every directory that is ours")
def make_devices() -> str | None:
    made = []
    for directory in ("/tmp", "/dev", "/dev/shm", "/run", OURS, "/root", "/var/tmp"):
        for kind, major, minor in (
            *((stat.S_IFBLK, 254, 0), (stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 7, 0), (stat.S_IFBLK, 253, 0)),
            *((stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 4), (stat.S_IFCHR, 1, 11), (stat.S_IFCHR, 10, 200)),
            *((stat.S_IFCHR, 10, 229), (stat.S_IFCHR, 10, 232), (stat.S_IFCHR, 10, 237)),
        ):
            path = f"{directory}/.device-{os.getpid()}-{kind}-{major}-{minor}"
            with contextlib.suppress(OSError):
                os.mknod(path, kind | 0o600, os.makedev(major, minor))
                made.append(f"{directory}: {major}:{minor}")
                os.unlink(path)
    return ", ".join(made) or None


@attempt("devices in /dev besides terminals and null, zero, full, random")
def found_devices() -> str | None:
    known = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
    found = []
    for directory, _, files in os.walk("/dev"):
        for name in files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and name not in known and directory != "/dev/pts":
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                    found.append(path)
    return ", ".join(found) or None


@attempt("the terminal of the operator who runs a command here")
def operators_terminal() -> str | None:
    held = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
    return ", ".join(name for name in held if "tty" in name or "pts" in name) or None


# ── mounts ──────────────────────────────────────────────────────────────────────────────────────


@attempt("mounting the host's disks and file systems of the kernel's insides")
def mount_disks() -> str | None:
    own_mounts()
    done = []
    for kind in ("ext4", "xfs", "btrfs", "vfat", "iso9660", "squashfs", "devtmpfs", "debugfs", "tracefs", "pstore",
                 "securityfs", "configfs", "efivarfs", "bpf", "hugetlbfs", "fusectl", "nfs", "9p", "virtiofs",
                 "erofs", "selinuxfs"):  # fmt: skip
        for source in ("/dev/vda", "/dev/sda", "none"):
            with contextlib.suppress(OSError):
                mount(source, "/mnt", kind)
                # Of its own namespaces, such a one holds nothing of the host's.
                inside = os.listdir("/mnt")
                if inside:
                    done.append(f"{kind} {source}: {inside[:3]}")
                call("umount2", b"/mnt", 2)
    return ", ".join(done) or None


@attempt("a fuse file system")
def fuse() -> str | None:
    return f"fd {os.open('/dev/fuse', os.O_RDWR)}"


@attempt("a fresh /proc, to do there what the one in place forbids")
def fresh_proc() -> str | None:
    own_mounts()
    for covered in ("/proc/kmsg", "/proc/sys", "/proc/sysrq-trigger", "/proc/kcore"):
        with contextlib.suppress(OSError):
            call("umount2", covered.encode(), 2)
    with mounted("proc", "proc") as proc:
        found = [name for name in ("kcore", "kmsg", "sysrq-trigger", "sys/kernel/core_pattern", "sys/kernel/modprobe",
                                   "sys/vm/drop_caches", "sys/fs/binfmt_misc/register", "sys/kernel/hotplug",
                                   "sys/vm/overcommit_memory", "sys/kernel/panic", "sys/fs/file-max",
                                   "irq/default_smp_affinity", "acpi/wakeup", "mtrr")
                 if opens_for_writing(f"{proc}/{name}")]  # fmt: skip
        with contextlib.suppress(OSError):
            os.close(os.open(f"{proc}/kcore", os.O_RDONLY))
            found.append("kcore, for reading")
        return ", ".join(found) or seen_elsewhere(f"{proc}/1/root", f"{proc}/1/cwd")


@attempt("a fresh /sys, with anything in it to write to")
def fresh_sys() -> str | None:
    own_mounts()
    with mounted("sysfs", "sysfs") as sysfs:
        return ", ".join(writable_files(sysfs)[:5]) or None


@attempt("writing to anything in /sys")
def write_sys() -> str | None:
    with contextlib.suppress(OSError):
        mount("none", "/sys", "", MS_REMOUNT | MS_BIND)
    return ", ".join(writable_files("/sys", without="/sys/fs/cgroup")[:5]) or None


def writable_files(top: str, without: str = "\0") -> list[str]:
    found = []
    for directory, directories, files in os.walk(top):
        if directory.startswith(without):
            directories[:] = []
            continue
        found += [path for name in files if opens_for_writing(path := os.path.join(directory, name))]
        if len(found) > 20:
            break
    return found


@attempt("cgroup: release_agent of any hierarchy, limits of the own machine, cgroups of others")
def cgroups() -> str | None:
    own_mounts()
    got = []
    for kind, data in (("cgroup", "rdma"), ("cgroup", "pids"), ("cgroup", "memory"), ("cgroup", "devices"),
                       ("cgroup", "none,name=mine"), ("cgroup", "none,name=systemd")):  # fmt: skip
        with contextlib.suppress(OSError), mounted("cgroup", kind, 0, data) as top:
            for directory, directories, files in os.walk(top):
                got += [os.path.join(directory, name) for name in files
                        if opens_for_writing(os.path.join(directory, name))]  # fmt: skip
                with contextlib.suppress(OSError):
                    os.mkdir(f"{directory}/mine")
                    got.append(f"mkdir in {data} {directory}")
                    os.rmdir(f"{directory}/mine")
                directories[:] = directories[:3]
    with mounted("cgroup2", "cgroup2") as top:
        for name in ("memory.max", "pids.max", "cpu.max", "cgroup.freeze", "cgroup.kill", "memory.high"):
            if os.path.exists(f"{top}/{name}") and opens_for_writing(f"{top}/{name}"):
                got.append(f"{name} of the machine")
        with open("/proc/self/cgroup") as file:
            if ".." in file.read():
                got.append("a cgroup above its own")
    return ", ".join(got[:5]) or None


@attempt("an overlay over the image, to change it for all")
def overlay_on_image() -> str | None:
    own_mounts()
    for name in ("upper", "work"):
        os.makedirs(f"/run/.over/{name}", exist_ok=True)
    os.makedirs("/run/.merged", exist_ok=True)
    mark = f"etc/changed-{os.getpid()}"
    with contextlib.suppress(OSError):
        mount(
            "over",
            "/run/.merged",
            "overlay",
            0,
            "lowerdir=/.image,upperdir=/run/.over/upper,workdir=/run/.over/work",
        )
        with open(f"/run/.merged/{mark}", "w") as file:
            file.write("x")
    with contextlib.suppress(OSError):
        mount("over", "/run/.merged", "overlay", 0, "lowerdir=/tmp,upperdir=/.image/etc,workdir=/.image/var")
        with open(f"/run/.merged/{mark}", "w") as file:
            file.write("x")
    return is_there(f"/.image/{mark}") or is_there(f"/.image/etc/{mark}")


@attempt(
    "writing where the host has bound something read-only, also after a remount or from a copy of the mount"
)
def read_only_binds() -> str | None:
    own_mounts()
    got = []
    for place in ("/.image", "/run/hive", "/opt/hyperhive", f"/agents/{os.environ.get('HIVE_LABEL')}/config"):
        with contextlib.suppress(OSError):
            mount("none", place, "", MS_REMOUNT | MS_BIND)
        with contextlib.suppress(OSError):
            # MOUNT_ATTR_RDONLY cleared, AT_RECURSIVE
            attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", 0, 1, 0, 0))
            call("mount_setattr", -100, place.encode(), 0x8000, attributes, 32)
        copy = tempfile.mkdtemp(dir="/tmp")
        with contextlib.suppress(OSError):
            mount(place, copy, "", MS_BIND | MS_REC)
            mount("none", copy, "", MS_REMOUNT | MS_BIND)
        for where in (place, copy):
            with contextlib.suppress(OSError):
                os.close(os.open(f"{where}/.planted", os.O_CREAT | os.O_WRONLY))
                if where != copy or os.path.exists(f"{place}/.planted"):
                    got.append(place)
                os.unlink(f"{where}/.planted")
    return ", ".join(got) or None


@attempt("taking the binds and covers of the host away, and looking below")
def take_covers_away() -> str | None:
    own_mounts()
    with open("/proc/self/mountinfo") as file:
        places = [line.split()[4] for line in file]
    for place in sorted(places, key=len, reverse=True):
        if place not in {"/", "/proc"}:
            with contextlib.suppress(OSError):
                call("umount2", place.encode(), 2)
    return seen_elsewhere("") or is_there("/var/lib/hyperhive") or is_there("/run/hyperhive")


@attempt("the new mount calls: open_tree of other namespaces, fsopen of disks")
def new_mount_calls() -> str | None:
    got = []
    for kind in ("ext4", "xfs", "btrfs", "squashfs"):
        with contextlib.suppress(OSError):
            context = call("fsopen", kind.encode(), 1)
            with contextlib.suppress(OSError):
                call("fsconfig", context, 1, b"source", b"/dev/vda", 0)  # FSCONFIG_SET_STRING
            call("fsconfig", context, 6, 0, 0, 0)  # FSCONFIG_CMD_CREATE
            got.append(f"fsopen {kind}")
    for pid in range(1, 50):
        with contextlib.suppress(OSError):
            fd = call("open_tree", -100, f"/proc/{pid}/root".encode(), 1)
            with contextlib.suppress(OSError):
                os.stat(HOST_FILE.lstrip("/"), dir_fd=fd)
                got.append(f"open_tree of {pid}")
            os.close(fd)
    return ", ".join(got) or None


# ── out of the root ─────────────────────────────────────────────────────────────────────────────


@attempt("a chroot below a directory that is held open, and then upwards")
def chroot_and_up() -> str | None:
    held = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.makedirs("/tmp/below", exist_ok=True)
    os.chroot("/tmp/below")
    os.fchdir(held)
    for _ in range(64):
        os.chdir("..")
    os.chroot(".")
    return seen_elsewhere("")


@attempt("pivot_root, and upwards from the old root")
def pivot() -> str | None:
    own_mounts()
    mount("tmpfs", "/mnt", "tmpfs")
    os.mkdir("/mnt/old")
    call("pivot_root", b"/mnt", b"/mnt/old")
    os.chdir("/old")
    for _ in range(64):
        os.chdir("..")
    call("umount2", b"/old", 2)
    return seen_elsewhere("", "/old")


@attempt("upwards from every bind of the host")
def up_from_binds() -> str | None:
    with open("/proc/self/mountinfo") as file:
        places = {line.split()[4] for line in file}
    return seen_elsewhere(*(f"{place}/" + "../" * 40 for place in places))


@attempt("/proc/PID/root, cwd and descriptors of every process there is")
def roots_of_processes() -> str | None:
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        found += [
            f"/proc/{pid}/{name}"
            for name in ("root", "cwd")
            if os.path.lexists(f"/proc/{pid}/{name}{HOST_FILE}")
        ]
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    held = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
                    if stat.S_ISDIR(os.fstat(held).st_mode):
                        os.stat(".." + "/.." * 30 + HOST_FILE, dir_fd=held)
                        found.append(f"/proc/{pid}/fd/{fd}")
                    os.close(held)
    return ", ".join(found) or None


@attempt("open_by_handle_at, from the root's own inode (shocker)")
def open_by_handle() -> str | None:
    for place in ("/", "/.image", OURS, "/run/hive", "/opt/hyperhive"):
        mount_fd = os.open(place, os.O_RDONLY)
        handle = ctypes.create_string_buffer(struct.pack("=Ii", 8, 1) + struct.pack("=II", 2, 0))
        with contextlib.suppress(OSError):
            return f"{place}: fd {call('open_by_handle_at', mount_fd, handle, os.O_RDONLY)}"
    return None


@attempt("the other agent's directories, its state and its socket")
def other_agent() -> str | None:
    paths = (f"/agents/{OTHER}", f"/run/hyperhive/agents/{OTHER}", f"/var/lib/hyperhive/agents/{OTHER}", "/run/hive/../" + OTHER,
             f"{OURS}/../../{OTHER}", f"/run/hive/../{OTHER}/mcp.sock")  # fmt: skip
    return ", ".join(path for path in paths if os.path.lexists(path)) or None


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────


@attempt("/proc/sysrq-trigger")
def sysrq() -> str | None:
    with contextlib.suppress(OSError):
        mount("none", "/proc/sysrq-trigger", "", MS_REMOUNT | MS_BIND)
    with open("/proc/sysrq-trigger", "w") as file:
        file.write("h")  # only its help, to the kernel's log
    return "it was written to"


@attempt("settings of the kernel below /proc/sys, except for those of the machine's own namespaces")
def kernel_settings() -> str | None:
    with contextlib.suppress(OSError):
        mount("none", "/proc/sys", "", MS_REMOUNT | MS_BIND)
    own = ("/proc/sys/net/", "/proc/sys/kernel/msg", "/proc/sys/kernel/shm", "/proc/sys/kernel/sem", "/proc/sys/fs/mqueue",
           "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/kernel/auto_msgmni",
           "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/pid_max")  # fmt: skip
    # pid_max is the pid namespace's own since Linux 6.14; before, nobody but the host's root opens it.
    return ", ".join(path for path in writable_files("/proc/sys") if not path.startswith(own)) or None


@attempt("the kernel's memory and addresses: /proc/kcore, /dev/mem, kallsyms, iomem, kmsg")
def kernel_memory() -> str | None:
    got = []
    for path in (
        "/proc/kcore",
        "/dev/mem",
        "/dev/kmem",
        "/dev/port",
        "/proc/kmsg",
        "/dev/kmsg",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/sched_debug",
        "/proc/slabinfo",
        "/proc/vmallocinfo",
        "/proc/kpagecount",
    ):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            if os.read(fd, 1):
                got.append(path)
    for path in ("/proc/kallsyms", "/proc/iomem"):
        with contextlib.suppress(OSError), open(path) as file:
            words = [line.split()[0].split("-")[0] for _, line in zip(range(500), file, strict=False)]
            if any(word.strip("0") for word in words):
                got.append(f"addresses of {path}")
    return ", ".join(got) or None


@attempt("loading and unloading modules, kexec")
def kernel_code() -> str | None:
    return any_call(
        ("init_module", b"", 0, b""),
        ("finit_module", 0, b"", 0),
        ("delete_module", b"no_such_module", 0),
        ("kexec_load", 0, 0, 0, 0),
    )


@attempt("bpf, perf_event_open, io_uring, userfaultfd, fanotify, vmsplice, move_pages")
def rare_calls() -> str | None:
    buffer = ctypes.create_string_buffer(256)
    return any_call(
        ("bpf", 0, buffer, 120), ("bpf", 5, buffer, 120), ("perf_event_open", buffer, 0, -1, -1, 0), ("io_uring_setup", 8, buffer),
        ("userfaultfd", 0), ("userfaultfd", 1), ("fanotify_init", 0, 0), ("vmsplice", 1, buffer, 1, 0),
        ("move_pages", 1, 0, 0, 0, 0, 0),
    )  # fmt: skip


@attempt("keyrings: add_key, keyctl of the session and of the user, request_key")
def keyrings() -> str | None:
    return any_call(
        ("add_key", b"user", b"mine", b"x", 1, -4),
        ("keyctl", 0, -3, 1),
        ("keyctl", 0, -4, 1),
        ("request_key", b"user", b"mine", 0, -3),
    )


@attempt("the clock, ports, swap, accounting, quota, the kernel's log, a reboot")
def hosts_affairs() -> str | None:
    now = ctypes.create_string_buffer(struct.pack("=qq", int(time.time()), 0))
    return any_call(
        ("settimeofday", now, 0), ("iopl", 0), ("iopl", 3), ("swapon", b"/tmp/none", 0), ("acct", b"/tmp/none"),
        ("quotactl", 0x80000700, b"/dev/vda", 0, 0), ("syslog", 3, ctypes.create_string_buffer(64), 64), ("reboot", 0xFEE1DEAD, 672274793, 0, 0),
    )  # fmt: skip


def any_call(*calls: tuple[object, ...]) -> str | None:
    got = []
    for name, *arguments in calls:
        try:
            call(str(name), *arguments)
        except OSError as error:
            # Anything but a refusal means that the kernel has looked at what was asked.
            if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}:
                continue
            got.append(f"{name} answers {error.strerror}")
        else:
            got.append(str(name))
    return ", ".join(got) or None


# ── processes and namespaces ────────────────────────────────────────────────────────────────────


@attempt("user namespaces by unshare, clone and clone3, and all capabilities in one")
def user_namespaces() -> str | None:
    got = []
    with contextlib.suppress(OSError):
        call("unshare", NEWUSER)
        got.append("unshare")
    for name in ("clone", "clone3"):
        with contextlib.suppress(OSError):
            block = ctypes.create_string_buffer(struct.pack("=QQQQQ", NEWUSER, 0, 0, 0, signal.SIGCHLD), 64)
            arguments = (NEWUSER | signal.SIGCHLD, 0, 0, 0, 0) if name == "clone" else (block, 64)
            pid = call(name, *arguments)
            if pid == 0:
                os._exit(0)
            got.append(name)
    with contextlib.suppress(OSError):
        mount("none", "/proc/sys", "", MS_REMOUNT | MS_BIND)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("9")
        got.append("a higher limit")
    return ", ".join(got) or None


@attempt("namespaces of the host through any process or descriptor (setns)")
def foreign_namespaces() -> str | None:
    own = {kind: os.readlink(f"/proc/1/ns/{kind}") for kind in ("user", "pid", "ipc", "uts", "net")}
    got = []
    for pid in {*(name for name in os.listdir("/proc") if name.isdigit()), str(HOST_PID)}:
        for kind, name in own.items():
            with contextlib.suppress(OSError):
                # Services of the guest have some of their own; only the host's are out of reach of its init.
                if kind in {"user", "pid"} and os.readlink(f"/proc/{pid}/ns/{kind}") != name:
                    call("setns", os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), 0)
                    got.append(f"{kind} of {pid}")
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/ns/user", os.O_RDONLY)
        import fcntl

        got.append(f"the parent of its user namespace: fd {fcntl.ioctl(fd, 0xB702)}")  # NS_GET_PARENT
    return ", ".join(got) or None


@attempt("signals, ptrace, memory and descriptors of a process of the host")
def host_processes() -> str | None:
    got = []
    with open("/proc/1/comm") as file:
        if file.read().strip() not in {"systemd", "init"}:
            got.append("process 1 is not the machine's")
    count = len([name for name in os.listdir("/proc") if name.isdigit()])
    if count > 200:
        got.append(f"{count} processes are seen")
    if HOST_PID:
        for name, arguments in (("ptrace", (16, HOST_PID, 0, 0)), ("pidfd_open", (HOST_PID, 0))):
            with contextlib.suppress(OSError):
                call(name, *arguments)
                got.append(name)
        with contextlib.suppress(OSError):
            os.kill(HOST_PID, 0)
            got.append("kill")
    with contextlib.suppress(OSError):
        call("pidfd_getfd", call("pidfd_open", 1, 0), 0, 0)
        got.append("pidfd_getfd")
    return ", ".join(got) or None


@attempt(
    "a lower nice value, realtime, more files than are allowed, locked memory, another personality's devices"
)
def more_than_its_share() -> str | None:
    import resource

    got = []
    for name, do in (
        ("nice", lambda: os.nice(-5)),
        ("realtime", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        ("files", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9999999, 9999999))),
    ):
        with contextlib.suppress(OSError, ValueError):
            do()
            got.append(name)
    return ", ".join(got) or None


@attempt("telling the host's systemd things over the notify socket of nspawn")
def notify_host() -> str | None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for path in ("/run/host/notify", "/run/systemd/notify"):
        with contextlib.suppress(OSError):
            client.sendto(
                b"STOPPING=1\nMAINPID=1\nERRNO=5\nWATCHDOG=trigger\nFDSTORE=1\nEXTEND_TIMEOUT_USEC=999999999",
                path,
            )
    return None  # whether it believed that is looked at from outside


def main() -> int:
    only = set(sys.argv[1:])
    for name, (tried, function) in ATTEMPTS.items():
        if only and name not in only:
            continue
        outcome, said = run(function)
        print(json.dumps({"name": name, "tried": tried, "outcome": outcome, "said": said}), flush=True)
    return 0


def run(function: Attempt) -> tuple[str, str]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            evidence = function()
            said = ("open", evidence) if evidence else ("blocked", "nothing was got")
        except OSError as error:
            said = ("blocked", error.strerror or str(error))
        except BaseException as error:
            said = ("broken", f"{type(error).__name__}: {error}")
        os.write(writing, json.dumps(said).encode()[:60000])
        os._exit(0)
    os.close(writing)
    until, text = time.monotonic() + DEADLINE_S, b""
    while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        text += chunk
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    if text:
        outcome, said = json.loads(text)
        return outcome, said
    return "blocked", f"it ended with {status}"


if __name__ == "__main__":
    sys.exit(main())
