package config

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const operatorYAML = `custodian_url: postgres://kluis_custodian@db.example/kluis?sslmode=verify-full
profile_file: nl.yaml
seal_keys_file: seal.pem
feed_copy_file: feed
auditor_url: postgres://kluis_auditor@db.example/kluis?sslmode=verify-full
audit_origin: kluis.example/audit
audit_export_dir: checkpoints
auditor_metrics_listen: 127.0.0.1:9104
oversight:
  working_hours: {days: [mon, sat], from: "07:30", to: "24:00"}
  keep_days: 60
custodian:
  addresses: ["127.0.0.1:9001"]
  tls: {certificate_file: c.crt, key_file: c.key, ca_file: ca.crt}
`

func TestOperator(t *testing.T) {
	t.Parallel()
	path := write(t, "kluis.yaml", operatorYAML, 0o644)
	c, err := Load[Operator](path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "feed"); c.FeedCopyFile != want || c.Custodian.TLS.KeyFile == "c.key" {
		t.Errorf("%+v", c)
	}
	if want := filepath.Join(filepath.Dir(path), "checkpoints"); c.AuditExportDir != want {
		t.Errorf("%+v", c)
	}
	days, from, to, err := c.Oversight.WorkingHours.Times()
	if want := [7]bool{1: true, 6: true}; err != nil || days != want || from != 7*time.Hour+30*time.Minute || to != 24*time.Hour {
		t.Errorf("%v, %v to %v, %v", days, from, to, err)
	}
	roundTrip(t, filepath.Join(t.TempDir(), "kluis.yaml"), c)
	for name, c := range map[string]struct{ old, new, want string }{
		"a custodian without a copy":      {"feed_copy_file: feed\n", "", "feed_copy_file: is missing"},
		"a custodian's password in it":    {"kluis_custodian@", "kluis_custodian:secret@", "custodian_url: "},
		"a custodian without TLS":         {"key_file: c.key, ", "", "custodian.tls.key_file: is missing"},
		"a custodian without addresses":   {`["127.0.0.1:9001"]`, "[]", "custodian.addresses: is missing"},
		"an auditor's password in it":     {"kluis_auditor@", "kluis_auditor:secret@", "auditor_url: "},
		"a log without a name":            {"audit_origin: kluis.example/audit\n", "", "audit_origin: must be"},
		"a log with a plus":               {"example/audit", "example+audit", "audit_origin: must not"},
		"metrics without a port":          {"127.0.0.1:9104", "127.0.0.1", "auditor_metrics_listen: "},
		"a day that is none":              {"[mon, sat]", "[mon, zon]", "oversight.working_hours: days are"},
		"working hours without days":      {"[mon, sat]", "[]", "oversight.working_hours: needs days"},
		"an hour that is none":            {"07:30", "7:30", "oversight.working_hours: from and to are"},
		"working hours over midnight":     {"24:00", "06:00", "oversight.working_hours: needs days, from, and a later to"},
		"counts of too few days":          {"keep_days: 60", "keep_days: 7", "oversight.keep_days: must be"},
		"a copy that is called otherwise": {"feed_copy_file", "feed_copy", "unknown field"},
	} {
		if strings.Count(operatorYAML, c.old) != 1 {
			t.Fatal("the case changes nothing: " + name)
		}
		_, err := Load[Operator](write(t, "kluis.yaml", strings.Replace(operatorYAML, c.old, c.new, 1), 0o644))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
