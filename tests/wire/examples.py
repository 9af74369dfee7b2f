"""Messages about questions, reminders, threads, letters that are dead or not allowed, retention and backup,
for test_golden.py.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from hive_core.wire import agent, agent_manager, allow, dead, host, question, reminder, retention, search
from hive_core.wire.rows import MessageRow

AGENT: Final[Mapping[str, msgspec.Struct]] = {
    "ask": agent.Ask(
        question="Which one?",
        options=["red", "blue"],
        multi=True,
        ttl_seconds=3600.0,
        to="bob",
        idempotency_key="k2",
    ),
    "ask-short": agent.Ask(question="May I?"),
    "asked": agent.Asked(id=7),
    "answer": agent.Answer(id=7, answer="red", idempotency_key="k3"),
    "open_threads": agent.OpenThreads(),
    "threads": agent.Threads(
        threads=[
            agent.OpenThread(
                kind="question",
                id=7,
                text="Which one?",
                since=1795132800.25,
                asker="alice",
                asked_of="bob",
                due_at=1795136400.25,
            ),
            agent.OpenThread(kind="reminder", id=3, text="look again", since=1.5, due_at=2.5),
        ],
        unread=2,
    ),
    "cancel_thread": agent.CancelThread(kind="question", id=7, idempotency_key="k4"),
    "cancel_thread-reminder": agent.CancelThread(kind="reminder", id=3),
    "remind": agent.Remind(
        message="look again", delay_seconds=60.0, file_path="notes/build.md", idempotency_key="k5"
    ),
    "remind-at": agent.Remind(message="look again", at_unix_timestamp=1795136400.25),
    "reminded": agent.Reminded(id=3, due_at=1795136400.25),
    "count_pending_reminders": agent.CountPendingReminders(),
    "pending_reminders": agent.PendingReminders(pending=2),
    "set_aside": agent.SetAside(ids=[42], reason="the turn failed three times"),
    "cancel_thread-approval": agent.CancelThread(kind="approval", id=7),
    "logs-name": agent.Logs(lines=5, name="bob"),
    "request_spawn": agent_manager.RequestSpawn(
        name="carol", description="for the docs", idempotency_key="k6"
    ),
    "request_spawn-short": agent_manager.RequestSpawn(name="carol"),
    "request_init_config": agent_manager.RequestInitConfig(
        name="carol", description="for the docs", idempotency_key="k7"
    ),
    "request_apply_commit": agent_manager.RequestApplyCommit(
        agent="bob", commit_ref="0123456789ab", description="more memory", idempotency_key="k8"
    ),
    "request_update_meta_inputs": agent_manager.RequestUpdateInputs(
        inputs=["nixpkgs"], description="a fix of openssl", idempotency_key="k9"
    ),
    "requested": agent_manager.Requested(id=7),
    "open_config": agent_manager.OpenConfig(name="bob"),
    "list_approvals": agent_manager.ListApprovals(),
    "approvals": agent_manager.Approvals(
        approvals=[
            agent_manager.ApprovalBrief(
                id=7,
                kind="apply_commit",
                status="approved",
                requested_at=1795132800.25,
                agent="bob",
                proposer="manager",
                sha="0123456789abcdef0123456789abcdef01234567",
                description="more memory",
                note="it ended with status 1",
                tag="building/7",
                expires_at=1795392000.25,
                in_work=True,
            ),
            agent_manager.ApprovalBrief(
                id=8, kind="update_meta_inputs", status="pending", requested_at=1.5, proposer="operator"
            ),
        ]
    ),
    "list_agents": agent_manager.ListAgents(),
    "agents": agent_manager.Agents(
        agents=[
            agent_manager.AgentBrief(
                name="bob",
                running=True,
                failed=True,
                paused=True,
                needs_update=True,
                needs_login=True,
                status_text="reading",
                transient="restarting",
                deployed_sha="0123456789abcdef0123456789abcdef01234567",
                deployed_tag="deployed/7",
                failure="exit status 1",
                unread=3,
            ),
            agent_manager.AgentBrief(name="carol", running=False),
        ]
    ),
    "kill": agent_manager.Kill(name="bob"),
    "start": agent_manager.Start(name="bob"),
    "restart": agent_manager.Restart(name="bob"),
    "update": agent_manager.Update(name="bob"),
}

QUESTION: Final = question.QuestionRow(
    id=7,
    asker="alice",
    target="operator",
    question="Which one?",
    options=["red", "blue"],
    multi=True,
    asked_at="2026-09-07T12:34:56Z",
    deadline_at="2026-09-07T13:34:56Z",
    answered_at="2026-09-07T12:35:56Z",
    answer="red, blue",
    answerer="operator",
)
OPEN_QUESTION: Final = question.QuestionRow(
    id=8,
    asker="operator",
    target="bob",
    question="How far?",
    options=[],
    multi=False,
    asked_at="2026-09-07T12:34:56Z",
)
REMINDER: Final = reminder.ReminderRow(
    id=3,
    agent="alice",
    message="look again",
    due_at="2026-09-07T13:34:56Z",
    created_at="2026-09-07T12:34:56Z",
    file_path="notes/build.md",
    attempts=5,
    last_error="cannot write notes/build.md: No space left on device",
)
SHORT_REMINDER: Final = reminder.ReminderRow(
    id=4, agent="bob", message="go on", due_at="2026-09-07T13:34:56Z", created_at="2026-09-07T12:34:56Z"
)
DEAD: Final = MessageRow(
    id=42,
    sender="bob",
    recipient="alice",
    body="hi",
    sent_at="2026-09-07T12:34:56Z",
    redelivered=True,
    dead_at="2026-09-07T12:44:56Z",
    dead_reason="the turn failed three times",
    attempts=3,
)
SWEEP: Final = retention.Vacuumed(
    number=4,
    started_at="2026-09-07T12:34:56Z",
    seconds=1.5,
    running=True,
    messages=10,
    events=200,
    turn_stats=30,
    generations=2,
    troubles=1,
    freed_bytes=65536,
    longest_slice_seconds=0.004,
)
ARCHIVE: Final = retention.ArchiveRow(
    path="/var/lib/hyperhive/backups/hive-20260907-123456.tar.gz",
    kind="hive",
    size_bytes=1_048_576,
    created_at="2026-09-07T12:34:56Z",
    schema=3,
    agents=["alice", "bob"],
    messages=42,
    problem="the hash of broker.sqlite is another one",
)

HOST: Final[Mapping[str, msgspec.Struct]] = {
    "questions": question.Questions(id=7, all=True, limit=5),
    "questions.reply": question.QuestionsReply(questions=[QUESTION, OPEN_QUESTION]),
    "ask": question.Ask(
        agent="bob", question="Which one?", options=["red", "blue"], multi=True, ttl_seconds=60.0
    ),
    "ask.reply": question.Asked(id=8),
    "answer": question.Answer(id=7, answer="the red one"),
    "answer-options": question.Answer(id=7, options=[1, 2]),
    "answer.reply": question.Answered(answer="red, blue"),
    "cancel_question": question.CancelQuestion(id=7),
    "reminders": reminder.Reminders(agent="alice", limit=5),
    "reminders.reply": reminder.RemindersReply(reminders=[REMINDER, SHORT_REMINDER]),
    "cancel_reminder": reminder.CancelReminder(id=3),
    "retry_reminder": reminder.RetryReminder(id=3),
    "thread": search.Thread(id=42, limit=5),
    "search": search.Search(text='build "exit status"', agent="alice", limit=5),
    "search.reply": search.Found(messages=[], not_indexed=3),
    "allow": allow.Allow(name="alice", recipients=["bob", "operator"]),
    "allow-anyone": allow.Allow(name="alice", recipients=None),
    "agent_status.reply-letters": host.AgentStatuses(
        agent_statuses=[
            host.AgentStatusRow(
                name="alice", running=True, failed=False, allowed_recipients=["bob", "operator"], dead=1
            )
        ]
    ),
    "dead": dead.Dead(agent="alice", limit=5),
    "dead.reply": dead.DeadLetters(messages=[DEAD]),
    "dead_retry": dead.DeadRetry(id=42),
    "dead_retry-all": dead.DeadRetry(all=True, agent="alice"),
    "dead_retry.reply": dead.Retried(retried=1),
    "dead_drop": dead.DeadDrop(id=42),
    "vacuum": retention.Vacuum(dry_run=True, number=4),
    "vacuum.reply": retention.VacuumReply(
        rows=[
            retention.RetentionRow(
                what="events",
                agent="alice",
                goes=5000,
                stays=12,
                at_least=True,
                why="older than 7 days",
                trouble=True,
            ),
            retention.RetentionRow(what="questions", why="kept for ever"),
        ],
        sweep=SWEEP,
        database_bytes=1_048_576,
        free_bytes=65536,
    ),
    "backup_create": retention.BackupCreate(),
    "backup_create.reply": retention.ArchiveReply(archive=ARCHIVE),
    "backups": retention.Backups(),
    "backups.reply": retention.BackupsReply(archives=[ARCHIVE]),
    "backup_verify": retention.BackupVerify(path="hive-20260907-123456.tar.gz"),
    "export": retention.Export(agent="alice"),
    "import": retention.Import(path="alice-20260907-123456.tar.gz", name="alice2"),
    "status.reply-more": host.StatusReply(
        software="hyperhive 0.1.0",
        mode="local",
        home="/home/me/.local/state/hyperhive",
        pid=4711,
        started_at="2026-09-07T12:34:56Z",
        uptime_seconds=12.5,
        agents=2,
        running=1,
        failed=1,
        unread=3,
        messages=42,
        questions=1,
        approvals=2,
        dead=1,
        schema=3,
        database_bytes=65536,
        store="ok",
        connections=3,
        rss_bytes=41943040,
        vacuum=SWEEP,
    ),
}
