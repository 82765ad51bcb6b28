package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func (w *world) identities(file string, more ...string) (int, peopleReport, string) {
	w.t.Helper()
	code, out, complaint := w.kluis(append([]string{"ingest", "identities", "--json", file}, more...)...)
	var r peopleReport
	if code == exitOK {
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			w.t.Fatalf("%v: %s", err, out)
		}
	}
	return code, r, complaint
}

func TestIngestIdentities(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.setUp()
	const head = "ean,name,street,house_number,addition,postcode,city,from\n"
	person := func(ean, name, from string) string {
		return ean + "," + name + ",Dorpsstraat,17,,1234AB,Ons Dorp," + from + "\n"
	}
	good := w.write("good.csv", []byte(head+person(testEAN, "Xantippe Overdam", "2023-01-01")+person(testGas, "Xantippe Overdam", "2023-01-01")))

	if code, r, complaint := w.identities(good); code != exitOK || r.Rows != 2 || r.Stored != 2 || r.Corrected+r.Unchanged != 0 || len(r.Bad) != 0 {
		t.Fatalf("exit code %d, %+v: %s", code, r, complaint)
	}
	if w.count("sealed_identity") != 2 || w.count("identity_index") != 2 || w.count("data_key") != 2 {
		t.Errorf("%d identities, %d addresses, %d keys", w.count("sealed_identity"), w.count("identity_index"), w.count("data_key"))
	}
	// Again: nothing changes. A correction is a new version under the same key.
	if code, r, complaint := w.identities(good); code != exitOK || r.Stored+r.Corrected != 0 || r.Unchanged != 2 {
		t.Errorf("again: exit code %d, %+v: %s", code, r, complaint)
	}
	corrected := w.write("corrected.csv", []byte(strings.Replace(head, ",", ";", -1)+strings.Replace(person(testEAN, "X. Overdam-Polder", "2023-01-01"), ",", ";", -1)))
	if code, r, complaint := w.identities(corrected, "--delimiter", "semicolon"); code != exitOK || r.Corrected != 1 {
		t.Errorf("corrected: exit code %d, %+v: %s", code, r, complaint)
	}
	if w.count("sealed_identity") != 3 || w.count("identity_index") != 2 || w.count("data_key") != 2 {
		t.Errorf("%d identities, %d addresses, %d keys", w.count("sealed_identity"), w.count("identity_index"), w.count("data_key"))
	}

	// Lines that are of nobody: all or nothing, or left out.
	bad := w.write("bad.csv", []byte(head+person(otherEAN, "Zoë Onbekend", "2023-01-01")+person(testEAN, "Zoë Onbekend", "2023-01-02")+
		person("871687200000000011", "Zoë Onbekend", "2023-01-01")+person(testGas, "Ysolde Nieuw", "2023-01-01")))
	code, _, complaint := w.identities(bad)
	if code != exitRefused || !strings.Contains(complaint, "line 4, column 1: not an EAN-18") || strings.Contains(complaint, "Onbekend") {
		t.Errorf("bad lines: exit code %d: %s", code, complaint)
	}
	if w.count("sealed_identity") != 3 {
		t.Error("something of a refused file was stored")
	}
	code, r, complaint := w.identities(bad, "--skip-bad")
	if code != exitOK || r.Rows != 4 || r.Corrected != 1 || len(r.Bad) != 3 || r.Bad[0].Line != 2 || !strings.Contains(r.Bad[0].Reason, "not registered") ||
		r.Bad[1].Line != 3 || !strings.Contains(r.Bad[1].Reason, "nobody moved in") || r.Bad[2].Line != 4 {
		t.Errorf("skipped: exit code %d, %+v: %s", code, r, complaint)
	}
	if out := w.must("ingest", "identities", good); !strings.Contains(out, "read 2 rows; stored 2 names and addresses (2 corrections), 0 unchanged") {
		t.Errorf("told: %s", out)
	}

	// Erased with the occupancy, and not with the months: 2023 is past retention
	// for readings.
	keys := w.count("data_key")
	w.must("keys", "erase", "--past-retention", "--yes")
	w.must("keys", "reapply")
	if w.count("data_key") != keys {
		t.Error("names and addresses were erased with old readings")
	}
	w.must("keys", "erase", "--ean", testEAN, "--occupancy", "2023-01-01", "--yes")
	if w.count("data_key") != keys-1 || w.count("identity_index") != 1 {
		t.Errorf("%d keys, %d addresses", w.count("data_key"), w.count("identity_index"))
	}
	var blank int
	if err := w.db.Open(t, "kluis_owner").QueryRowContext(t.Context(), `SELECT count(*) FROM sealed_identity WHERE content_mac = decode(repeat('00', 32), 'hex')`).Scan(&blank); err != nil || blank < 2 {
		t.Errorf("%d blank MACs, %v", blank, err)
	}
	// Given anew it is stored anew, under another key.
	if code, r, complaint := w.identities(good); code != exitOK || r.Corrected != 1 || r.Unchanged != 1 || w.count("data_key") != keys {
		t.Errorf("anew: exit code %d, %+v: %s", code, r, complaint)
	}
}
