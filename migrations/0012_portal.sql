-- +goose Up

-- Sessions of the customer-service portal. Whoever reads these tables can be
-- nobody: ids are hashed, and the rest is sealed with a key of the portal's.

CREATE TABLE portal_session (
    id      bytea       PRIMARY KEY CHECK (octet_length(id) = 32),
    subject bytea       NOT NULL CHECK (octet_length(subject) = 32),
    data    bytea       NOT NULL CHECK (octet_length(data) <= 65536),
    started timestamptz NOT NULL DEFAULT now(),
    expires timestamptz NOT NULL
);
CREATE INDEX portal_session_by_subject ON portal_session (subject);
CREATE INDEX portal_session_by_expiry ON portal_session (expires);
COMMENT ON TABLE  portal_session IS 'Employees signed in at the portal. Deleted when they sign out, or after the session ended.';
COMMENT ON COLUMN portal_session.id IS 'SHA-256 of the id in the browser''s cookie.';
COMMENT ON COLUMN portal_session.subject IS 'Keyed digest of the employee, to end all of their sessions.';
COMMENT ON COLUMN portal_session.data IS 'Who signed in, with the ID token, sealed with the portal''s key.';
COMMENT ON COLUMN portal_session.started IS 'When it was stored first.';
COMMENT ON COLUMN portal_session.expires IS 'When it ends without a further click, or at the latest.';

CREATE TABLE portal_case (
    session bytea       NOT NULL CHECK (octet_length(session) = 32),
    id      bytea       NOT NULL CHECK (octet_length(id) = 16),
    data    bytea       NOT NULL CHECK (octet_length(data) <= 4096),
    opened  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session, id)
);
COMMENT ON TABLE  portal_case IS 'What an employee opened in a session: addresses of pages name a case, never a metering point.';
COMMENT ON COLUMN portal_case.session IS 'Its session (id): deleted with it.';
COMMENT ON COLUMN portal_case.id IS 'As in the addresses of pages. Worth nothing without the session.';
COMMENT ON COLUMN portal_case.data IS 'Metering point and reason, sealed with the portal''s key.';
COMMENT ON COLUMN portal_case.opened IS 'When.';

GRANT USAGE ON SCHEMA public TO kluis_portal;
-- +goose StatementBegin
DO $$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO kluis_portal', current_database());
END $$;
-- +goose StatementEnd
GRANT SELECT, INSERT, DELETE ON portal_session TO kluis_portal;
GRANT UPDATE (data, expires) ON portal_session TO kluis_portal;
GRANT SELECT, INSERT, DELETE ON portal_case TO kluis_portal;

-- +goose Down
DROP TABLE portal_case, portal_session;
REVOKE USAGE ON SCHEMA public FROM kluis_portal;
-- +goose StatementBegin
DO $$ BEGIN
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM kluis_portal', current_database());
END $$;
-- +goose StatementEnd
