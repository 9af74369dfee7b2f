-- A file that hyperhive wrote at schema 3.  Never changed: it stands for those that are out there.
pragma application_id = 1212765765;
pragma user_version = 3;
CREATE TABLE messages (id integer primary key autoincrement, sender text not null, recipient text not null, body text not null, sent_at real not null, delivered_at real, acked_at real, in_reply_to integer, redelivered integer not null default 0, broadcast integer not null default 0, thread_id integer, cause_id integer, sender_uid integer, idempotency_key text, attempts integer not null default 0, dead_at real, dead_reason text);
CREATE TABLE approvals (id integer primary key autoincrement, agent text not null, kind text not null default 'apply_commit', commit_ref text not null default '', requested_at real not null, status text not null default 'pending', resolved_at real, note text, fetched_sha text, description text);
CREATE TABLE operator_questions (id integer primary key autoincrement, asker text not null, question text not null, options_json text not null default '[]', multi integer not null default 0, asked_at real not null, deadline_at real, answered_at real, answer text, target text, answerer text);
CREATE TABLE reminders (id integer primary key autoincrement, agent text not null, message text not null, due_at real not null, file_path text, created_at real not null default 0, sent_at real, attempt_count integer not null default 0, last_error text);
CREATE TABLE agents (
             name text primary key, wanted text not null, paused integer not null default 0,
             created_at real not null, destroyed_at real, status_text text, status_set_at real
           , uid_base integer, image text, network text, memory_max_bytes integer, cpu_quota_percent integer, tasks_max integer, allowed_recipients text) without rowid;
CREATE TABLE daemon (key text primary key, value) without rowid;
CREATE INDEX messages_to_operator on messages (id) where recipient = 'operator';
CREATE UNIQUE INDEX messages_by_key on messages (sender, idempotency_key)
           where idempotency_key is not null;
CREATE UNIQUE INDEX agents_by_uid_base on agents (uid_base) where uid_base is not null;
CREATE INDEX messages_waiting on messages (recipient, id) where acked_at is null and dead_at is null;
CREATE INDEX messages_dead on messages (recipient, id) where acked_at is null and dead_at is not null;
CREATE INDEX messages_replies on messages (thread_id) where in_reply_to is not null;
CREATE INDEX questions_open on operator_questions (deadline_at) where answered_at is null;
CREATE TABLE repeats (id integer primary key autoincrement, agent text not null, key text not null, result integer not null, unique (agent, key));
CREATE INDEX repeats_of_agent on repeats (agent);
insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast, thread_id, cause_id, sender_uid, idempotency_key, attempts, dead_at, dead_reason) values (1, 'operator', 'alice', 'done long ago', 1000.5, 1001.0, 1002.0, NULL, 0, 0, 1, NULL, 1000, 'k1', 0, NULL, NULL);
insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast, thread_id, cause_id, sender_uid, idempotency_key, attempts, dead_at, dead_reason) values (2, 'bob', 'alice', 'still waits', 1003.0, NULL, NULL, NULL, 0, 0, 2, NULL, 1000, NULL, 0, NULL, NULL);
insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast, thread_id, cause_id, sender_uid, idempotency_key, attempts, dead_at, dead_reason) values (3, 'bob', 'alice', 'in flight', 1004.0, 1005.0, NULL, NULL, 1, 1, 3, 2, 1000, NULL, 3, NULL, NULL);
insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast, thread_id, cause_id, sender_uid, idempotency_key, attempts, dead_at, dead_reason) values (4, 'alice', 'bob', 'reply – “so”
', 1006.0, NULL, NULL, 2, 0, 0, 2, 2, 1000, NULL, 0, NULL, NULL);
insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast, thread_id, cause_id, sender_uid, idempotency_key, attempts, dead_at, dead_reason) values (5, 'alice', 'operator', 'to you', 1007.0, NULL, NULL, NULL, 0, 0, 5, NULL, NULL, NULL, 0, NULL, NULL);
insert into approvals (id, agent, kind, commit_ref, requested_at, status, resolved_at, note, fetched_sha, description) values (1, 'alice', 'spawn', '', 1000.0, 'pending', NULL, NULL, NULL, 'please');
insert into approvals (id, agent, kind, commit_ref, requested_at, status, resolved_at, note, fetched_sha, description) values (2, 'alice', 'apply_commit', '0123456', 1001.0, 'approved', 1002.0, NULL, '0123456789012345678901234567890123456789', NULL);
insert into approvals (id, agent, kind, commit_ref, requested_at, status, resolved_at, note, fetched_sha, description) values (3, 'alice', 'apply_commit', '0123456', 1003.0, 'pending', NULL, NULL, NULL, NULL);
insert into operator_questions (id, asker, question, options_json, multi, asked_at, deadline_at, answered_at, answer, target, answerer) values (1, 'alice', 'why?', '["a","b"]', 1, 1000.0, 5000.0, NULL, NULL, NULL, NULL);
insert into operator_questions (id, asker, question, options_json, multi, asked_at, deadline_at, answered_at, answer, target, answerer) values (2, 'bob', 'how?', '[]', 0, 1000.0, NULL, 1001.0, 'so', 'alice', 'alice');
insert into reminders (id, agent, message, due_at, file_path, created_at, sent_at, attempt_count, last_error) values (1, 'alice', 'tea', 5000.0, 'reminders/1.md', 1000.0, NULL, 0, NULL);
insert into agents (name, wanted, paused, created_at, destroyed_at, status_text, status_set_at, uid_base, image, network, memory_max_bytes, cpu_quota_percent, tasks_max, allowed_recipients) values ('alice', 'running', 1, 999.5, NULL, 'reading', 1000.0, 1073741824, 'debian', 'veth', 4294967296, 200, 2048, '["bob"]');
insert into agents (name, wanted, paused, created_at, destroyed_at, status_text, status_set_at, uid_base, image, network, memory_max_bytes, cpu_quota_percent, tasks_max, allowed_recipients) values ('bob', 'gone', 0, 999.0, 1500.0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
insert into daemon (key, value) values ('clean', 1);
insert into repeats (id, agent, key, result) values (1, 'alice', 'ask k', 1);
delete from sqlite_sequence;
insert into sqlite_sequence (name, seq) values ('messages', 9);
insert into sqlite_sequence (name, seq) values ('approvals', 3);
insert into sqlite_sequence (name, seq) values ('operator_questions', 2);
insert into sqlite_sequence (name, seq) values ('reminders', 1);
insert into sqlite_sequence (name, seq) values ('repeats', 1);
