package conformance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"kluis/openapi/client"
)

// reading is a stream as far as it was read, over all its parts.
type reading struct {
	points   []Answered
	chain    *client.Chain
	manifest string // once it is complete
	cursor   string // of the last metering point
	begun    bool
}

// stream makes the request of a case that is answered by a stream, and, where
// the case says so, breaks off and goes on. Its manifest is verified against
// what came.
func (r *runner) stream(ctx context.Context, c Case, s Supplier, req *http.Request) (a Answer, interaction string, err error) {
	read := &reading{}
	parts := 0
	for stop := c.Request.Break; ; stop = 0 {
		parts++
		ctx, cancel := context.WithCancel(ctx)
		res, err := patient(r.Clients[s.Name], req.WithContext(ctx))
		if err != nil {
			cancel()
			return a, "", fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		interaction = res.Header.Get("X-Interaction-Id")
		a.Status = res.StatusCode
		if res.StatusCode != http.StatusOK {
			body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
			err = errors.Join(err, res.Body.Close())
			cancel()
			if err != nil {
				return a, interaction, err
			}
			return parseAnswer(res.StatusCode, res.Header, body)
		}
		if parts == 1 {
			a.heed(c, res.Header)
		}
		if mediaOf(res.Header) == mediaTable {
			err = read.table(res.Body, stop)
		} else {
			err = read.lines(res.Body, stop)
		}
		cancel() // what breaks the connection, if there is more to come
		_ = res.Body.Close()
		if err != nil {
			return a, interaction, err
		}
		if read.manifest != "" {
			break
		}
		if stop == 0 || read.cursor == "" {
			return a, interaction, errors.New("the stream ended without its last line")
		}
		var q asked
		if err := json.Unmarshal([]byte(c.Request.Body), &q); err != nil {
			return a, interaction, err
		}
		q.Cursor = read.cursor
		c.Request.Body = q.request("").Body
		if req, err = r.request(ctx, c, s); err != nil {
			return a, interaction, err
		}
	}
	a.Points = read.points
	m, err := r.verify(ctx, s, read)
	if err != nil {
		return a, interaction, err
	}
	a.Manifest = &Manifest{Points: int(m.Points), Given: int(m.Given), Partly: int(m.Partly), Withheld: int(m.Withheld), Failed: int(m.Failed), LeftOut: int(m.LeftOut),
		Expected: int(m.Expected), Delivered: int(m.Delivered), Parts: int(m.Parts)}
	return a, interaction, nil
}

// verify checks the manifest's signature, and its digest against what came.
func (r *runner) verify(ctx context.Context, s Supplier, read *reading) (client.Manifest, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Gateway+"/v1/manifest-keys", nil)
	if err != nil {
		return client.Manifest{}, err
	}
	status, _, body, err := do(r.Clients[s.Name], req)
	if err != nil {
		return client.Manifest{}, err
	}
	var keys client.JwkSet
	if err := json.Unmarshal(body, &keys); err != nil || status != http.StatusOK {
		return client.Manifest{}, fmt.Errorf("GET /v1/manifest-keys answers %d: %w", status, err)
	}
	m, err := client.VerifyManifest(read.manifest, keys)
	switch {
	case err != nil:
		return m, err
	case m.Digest != read.chain.Digest():
		return m, errors.New("the manifest is of other metering points than those that came")
	case m.Supplier != s.GLN.String():
		return m, errors.New("the manifest is of another supplier")
	}
	return m, nil
}

// begin starts the chain of digests; a later part goes on with it.
func (r *reading) begin(query string) error {
	b, err := base64.RawURLEncoding.DecodeString(query)
	if err != nil || len(b) != 32 {
		return errors.New("the first line names no query")
	}
	if !r.begun {
		r.chain, r.begun = client.NewChain([32]byte(b)), true
	}
	return nil
}

var errNoBegin = errors.New("the stream has no first line")

var errEnd = errors.New("the stream says that it ended early")

// lines reads NDJSON until so many metering points came; 0 is all.
func (r *reading) lines(body io.Reader, stop int) error {
	in := bufio.NewReaderSize(body, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		var l struct {
			Type     string
			Query    string
			Cursor   string
			Manifest string
			Complete bool
			answeredPoint
		}
		if err := json.Unmarshal(line, &l); err != nil {
			return err
		}
		switch l.Type {
		case "begin":
			if err := r.begin(l.Query); err != nil {
				return err
			}
		case "point":
			if !r.begun {
				return errNoBegin
			}
			r.points = append(r.points, l.answered())
			r.chain.Add(line)
		case "progress":
			r.cursor = l.Cursor
			if len(r.points) == stop {
				return nil
			}
		case "end":
			if !l.Complete {
				return fmt.Errorf("%w: %s", errEnd, l.answered().Problem)
			}
			r.manifest = l.Manifest
			return nil
		default:
			return fmt.Errorf("a line of type %q", l.Type)
		}
	}
}

// table does so with CSV, in which a metering point has several lines: those
// up to the row that says how far it came.
func (r *reading) table(body io.Reader, stop int) error {
	in := bufio.NewReaderSize(body, 1<<20)
	header, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	columns := strings.Split(strings.TrimRight(string(header), "\r\n"), ",")
	var rows []byte
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		cells, err := csv.NewReader(bytes.NewReader(line)).Read()
		if err != nil || len(cells) != len(columns) {
			return fmt.Errorf("no row of the table: %w", err)
		}
		of := map[string]string{}
		for i, name := range columns {
			of[name] = cells[i]
		}
		switch of["record"] {
		case "begin":
			if err := r.begin(strings.TrimPrefix(of["manifest"], "query=")); err != nil {
				return err
			}
		case "progress":
			if !r.begun {
				return errNoBegin
			}
			points, err := parseTable(append(bytes.Clone(header), rows...))
			if err != nil {
				return err
			}
			r.points = append(r.points, points...)
			r.chain.Add(rows)
			r.cursor, rows = of["cursor"], nil
			if len(r.points) == stop {
				return nil
			}
		case "end":
			if of["manifest"] == "" {
				return fmt.Errorf("%w: %s", errEnd, of["reason"])
			}
			r.manifest = of["manifest"]
			return nil
		default:
			rows = append(rows, line...)
		}
	}
}
