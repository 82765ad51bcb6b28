-- +goose Up

-- Oversight: who asks for how much, hour by hour, and what of it is unusual. The
-- auditor's daemon, which reads every access record anyway, keeps it in the
-- transaction that logs the record, so that each counts once. It grows with
-- parties and hours, not with requests, and old rows are removed. None of it is
-- evidence: what counts are the records, and the log.

CREATE TABLE access_hour (
    gln       bigint      NOT NULL,
    employee  text        NOT NULL CHECK (octet_length(employee) <= 128),
    at        timestamptz NOT NULL,
    requests  bigint      NOT NULL CHECK (requests = given + refused + failed),
    given     bigint      NOT NULL CHECK (given >= 0),
    refused   bigint      NOT NULL CHECK (refused >= 0),
    failed    bigint      NOT NULL CHECK (failed >= 0),
    points    bigint      NOT NULL CHECK (points BETWEEN 0 AND requests),
    searches  bigint      NOT NULL DEFAULT 0 CHECK (searches BETWEEN 0 AND requests - points),
    off_hours bigint      NOT NULL CHECK (off_hours BETWEEN 0 AND requests),
    last_at   timestamptz NOT NULL,
    PRIMARY KEY (gln, employee, at)
);
CREATE INDEX access_hour_by_time ON access_hour (at, gln, employee);
COMMENT ON TABLE  access_hour IS 'Access records of each party, by the hour. A request for several metering points has one record for each, and counts as often.';
COMMENT ON COLUMN access_hour.gln IS 'GLN of the caller; the grid operator''s own for an employee.';
COMMENT ON COLUMN access_hour.employee IS 'Subject of the employee, as in the record; empty for a supplier.';
COMMENT ON COLUMN access_hour.at IS 'Beginning of the hour.';
COMMENT ON COLUMN access_hour.requests IS 'Records.';
COMMENT ON COLUMN access_hour.given IS 'Of these: all or part was given, told or done, or the caller had it already.';
COMMENT ON COLUMN access_hour.refused IS 'Of these: nothing was given, because there was no relation, no right, or a step that could not be taken.';
COMMENT ON COLUMN access_hour.failed IS 'Of these: no answer left.';
COMMENT ON COLUMN access_hour.points IS 'Records that name a metering point, but for those of a search by address.';
COMMENT ON COLUMN access_hour.searches IS 'Searches by address, each once, however many records it has (and found nothing or was refused).';
COMMENT ON COLUMN access_hour.off_hours IS 'Records of an employee outside of working hours that concern customers or suppliers, as configured when they were counted.';
COMMENT ON COLUMN access_hour.last_at IS 'Time of the newest record.';

CREATE TABLE employee_point (
    employee text    NOT NULL CHECK (octet_length(employee) BETWEEN 1 AND 128),
    day      date    NOT NULL,
    ean      bigint  NOT NULL,
    found    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (ean, day, employee, found)
);
CREATE INDEX employee_point_by_day ON employee_point (day);
COMMENT ON TABLE  employee_point IS 'Metering points that an employee looked at, or was told of by a search, on a day, so that each counts once. The auditor''s alone.';
COMMENT ON COLUMN employee_point.employee IS 'Subject of the employee, as in the record.';
COMMENT ON COLUMN employee_point.day IS 'Local day.';
COMMENT ON COLUMN employee_point.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN employee_point.found IS 'False: looked at. True: told of by a search by address.';

CREATE TABLE employee_day (
    employee text   NOT NULL CHECK (octet_length(employee) BETWEEN 1 AND 128),
    day      date   NOT NULL,
    points   bigint NOT NULL CHECK (points >= 0),
    found    bigint NOT NULL DEFAULT 0 CHECK (found >= 0),
    PRIMARY KEY (employee, day),
    CHECK (points + found > 0)
);
CREATE INDEX employee_day_by_day ON employee_day (day, employee);
COMMENT ON TABLE  employee_day IS 'How many different metering points an employee looked at, and was told of by searches, on a day.';
COMMENT ON COLUMN employee_day.employee IS 'Subject of the employee, as in the record.';
COMMENT ON COLUMN employee_day.day IS 'Local day.';
COMMENT ON COLUMN employee_day.points IS 'Different metering points that were looked at.';
COMMENT ON COLUMN employee_day.found IS 'Different metering points that searches by address told of.';

CREATE TABLE access_unusual (
    kind     smallint    NOT NULL CHECK (kind BETWEEN 1 AND 6),
    gln      bigint      NOT NULL,
    employee text        NOT NULL CHECK (octet_length(employee) <= 128),
    from_at  timestamptz NOT NULL,
    to_at    timestamptz NOT NULL CHECK (to_at > from_at),
    count    bigint      NOT NULL CHECK (count > 0),
    usual    bigint      NOT NULL CHECK (usual >= 0),
    PRIMARY KEY (from_at, kind, gln, employee)
);
COMMENT ON TABLE  access_unusual IS 'What is unusual in the hours and days above (package auditlog): for somebody to look at, no proof of anything.';
COMMENT ON COLUMN access_unusual.kind IS '1 burst, 2 breadth, 3 off hours, 4 refusals, 5 searches, 6 found (package auditlog).';
COMMENT ON COLUMN access_unusual.gln IS 'As in access_hour.';
COMMENT ON COLUMN access_unusual.employee IS 'As in access_hour.';
COMMENT ON COLUMN access_unusual.from_at IS 'Beginning of the hour or local day.';
COMMENT ON COLUMN access_unusual.to_at IS 'Its end.';
COMMENT ON COLUMN access_unusual.count IS 'Records; metering points for breadth and found; searches for searches; metering points and searches for an employee''s burst.';
COMMENT ON COLUMN access_unusual.usual IS 'The same of a usual hour or day of this party.';

CREATE TABLE audit_result (
    at       timestamptz NOT NULL DEFAULT now() PRIMARY KEY,
    whole    boolean     NOT NULL,
    first    bigint      NOT NULL CHECK (first >= 0),
    size     bigint      NOT NULL CHECK (size >= first),
    findings jsonb       NOT NULL CHECK (jsonb_typeof(findings) = 'array')
);
CREATE INDEX audit_result_whole ON audit_result (at) WHERE whole;
CREATE INDEX audit_result_found ON audit_result (at) WHERE findings <> '[]';
COMMENT ON TABLE  audit_result IS 'What checks of the log found, and how much of it they looked at.';
COMMENT ON COLUMN audit_result.at IS 'When the check ended.';
COMMENT ON COLUMN audit_result.whole IS 'True: kluis audit verify, everything against everything. False: the daemon, only whether new leaves are those of their rows and the tree is the signed one.';
COMMENT ON COLUMN audit_result.first IS 'First leaf that was looked at.';
COMMENT ON COLUMN audit_result.size IS 'Leaf before which the check ended.';
COMMENT ON COLUMN audit_result.findings IS 'Array of {"code", "count"}; empty: none. Notices are left out.';

-- The auditor counts, and removes what is old. The gateway only reads, and never
-- which metering points an employee looked at.
GRANT SELECT, INSERT, UPDATE (requests, given, refused, failed, points, searches, off_hours, last_at), DELETE ON access_hour TO kluis_auditor;
GRANT SELECT, INSERT, DELETE ON employee_point TO kluis_auditor;
GRANT SELECT, INSERT, UPDATE (points, found), DELETE ON employee_day TO kluis_auditor;
GRANT SELECT, INSERT, UPDATE (count, usual), DELETE ON access_unusual TO kluis_auditor;
GRANT SELECT, INSERT (whole, first, size, findings), DELETE ON audit_result TO kluis_auditor;
GRANT SELECT ON access_hour, employee_day, access_unusual, audit_result TO kluis_gateway;

-- +goose Down
DROP TABLE audit_result, access_unusual, employee_day, employee_point, access_hour;
