package server

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// The media types of answers.
const (
	mediaJSON = "application/json"
	mediaHTML = "text/html"
	mediaCSV  = "text/csv"
	mediaAtom = "application/atom+xml"

	mediaNDJSON = "application/x-ndjson"
)

// The media types of operations that have several, the one for who does not
// say first.
var (
	readingsMedia = []string{mediaJSON, mediaCSV, mediaAtom}
	logMedia      = []string{mediaJSON, mediaHTML, mediaCSV}
	queryMedia    = []string{mediaJSON, mediaNDJSON, mediaCSV}
)

// contentTypes are what the header of an answer says of its media type.
var contentTypes = map[string]string{
	mediaJSON: mediaJSON,
	mediaHTML: mediaHTML + "; charset=utf-8",
	mediaCSV:  mediaCSV + "; charset=utf-8; header=present", // RFC 4180
	mediaAtom: mediaAtom + "; charset=utf-8; type=feed",     // RFC 4287, RFC 5023

	mediaNDJSON: mediaNDJSON,
}

// choose notes the media type that the answer of the request will have; all
// answers of its path, the refusals too, depend on Accept.
func (c *call) choose(h http.Header, r *http.Request) {
	if len(c.route.media) > 0 {
		h.Add("Vary", "Accept")
		c.media = negotiate(r.Header.Values("Accept"), c.route.media)
	}
}

// acceptable refuses who accepts none of the media types, after what is wrong
// with the request was told.
func (s *Server) acceptable(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := callOf(r.Context()); len(c.route.media) > 0 && c.media == "" {
			s.writeFailure(w, r, fail(notAcceptable, nil))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// negotiate chooses a media type by the Accept header (RFC 9110, 12.5.1): of
// the offers the one its caller likes best, the first one among equals, and ""
// when it likes none. What is not understood in the header counts for nothing.
func negotiate(accept, offers []string) string {
	all := strings.Join(accept, ",")
	if strings.TrimSpace(all) == "" {
		return offers[0]
	}
	best, quality := "", 0.0
	for _, offer := range offers {
		// Of the ranges an offer is in, the narrowest counts.
		q, narrow := 0.0, 0
		for part := range strings.SplitSeq(all, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			n := 0
			switch group, _, _ := strings.Cut(offer, "/"); media {
			case offer:
				n = 3
			case group + "/*":
				n = 2
			case "*/*":
				n = 1
			}
			if n <= narrow {
				continue
			}
			if w, ok := weight(params); ok {
				q, narrow = w, n
			}
		}
		if q > quality {
			best, quality = offer, q
		}
	}
	return best
}

// weight is the q of a media range; 1 when there is none.
func weight(params map[string]string) (float64, bool) {
	s, said := params["q"]
	if !said {
		return 1, true
	}
	q, err := strconv.ParseFloat(s, 64)
	if err != nil || len(s) > 5 || !(q >= 0 && q <= 1) || strings.ContainsAny(s, "+-eExX_pP") {
		return 0, false
	}
	return q, true
}
