package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
)

// logRow is a row of the access log, decoded.
type logRow struct {
	audit.Record
	receipt *envelope.Receipt // nil when nothing was opened
	salt    []byte
}

// accessLog returns the rows of an interaction.
func (w *world) accessLog(t testing.TB, interactionID string) []logRow {
	t.Helper()
	rows, err := w.accessRows(`WHERE interaction_id = $1`, interactionID)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// onlyRow is the one row that an interaction must have.
func (w *world) onlyRow(t testing.TB, interactionID string) logRow {
	t.Helper()
	rows := w.accessLog(t, interactionID)
	if len(rows) != 1 {
		t.Fatalf("interaction %s has %d rows in the access log, not 1", interactionID, len(rows))
	}
	return rows[0]
}

// accessRows decodes rows and checks that the columns say what the record
// says.
func (w *world) accessRows(where string, args ...any) ([]logRow, error) {
	rows, err := w.db.Query(`SELECT ean, interaction_id, gln, outcome, record, receipt, salt FROM access_log `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []logRow
	for rows.Next() {
		var ean, gln int64
		var id string
		var outcome int
		var record, receipt, salt []byte
		if err := rows.Scan(&ean, &id, &gln, &outcome, &record, &receipt, &salt); err != nil {
			return nil, err
		}
		rec, err := audit.Parse(record, receipt)
		if err != nil {
			return nil, fmt.Errorf("interaction %s: %w", id, err)
		}
		if rec.EAN.Int64() != ean || rec.Supplier.Int64() != gln || int(rec.Outcome) != outcome ||
			fmt.Sprintf("%x", rec.InteractionID) != strings.ReplaceAll(id, "-", "") {
			return nil, fmt.Errorf("interaction %s: the columns do not say what the record says", id)
		}
		if len(salt) != 16 || bytes.Equal(salt, make([]byte, 16)) {
			return nil, fmt.Errorf("interaction %s: salt %x", id, salt)
		}
		r := logRow{Record: rec, salt: salt}
		if len(receipt) > 0 {
			parsed, err := envelope.ParseReceipt(receipt)
			if err != nil {
				return nil, fmt.Errorf("interaction %s: %w", id, err)
			}
			r.receipt = &parsed
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// metrics are the series of a Prometheus endpoint by their text: name and
// labels.
type metrics map[string]float64

// scrape reads a metrics endpoint.
func scrape(t testing.TB, url string) metrics {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, res.Status, err)
	}
	m := metrics{}
	for _, line := range strings.Split(string(body), "\n") {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			v, err := strconv.ParseFloat(line[i+1:], 64)
			if err != nil {
				t.Fatalf("%s: %q", url, line)
			}
			m[line[:i]] = v
		}
	}
	return m
}

// sum adds up the series whose text matches the pattern.
func (m metrics) sum(pattern string) float64 {
	re := regexp.MustCompile(pattern)
	var n float64
	for series, v := range m {
		if re.MatchString(series) {
			n += v
		}
	}
	return n
}
