-- The URL's problem: what is wrong with a webhook's URL, for the application to ask when it saves a webhook.
--
-- The function has the rules that the daemon applies before it asks DNS, without the daemon. It reads URLs as browsers do
-- (WHATWG), because the daemon does: any number of slashes, user and password, and every spelling of an IPv4 address
-- (0x7f.1, 2130706433). It differs from the daemon where it cannot know:
--
-- * It does not know --allow-net. An address that only the operator's flag lets through is a problem here.
-- * It does not know --https-only, nor the addresses of the relay's machine and of the database.
-- * Of names in other scripts than ASCII it knows only the wide forms, and the characters that are left out.

CREATE FUNCTION relay.url_problem(url text) RETURNS text
    LANGUAGE plpgsql
    IMMUTABLE
    PARALLEL SAFE
    SET search_path = pg_catalog, pg_temp
    SET row_security = off
    SET standard_conforming_strings = on
AS $$
DECLARE
    -- As the standard says: nothing below the space, nor spaces, around it, and no tabs and line breaks within.
    bare      text := translate(btrim(url, (SELECT string_agg(chr(n), '') FROM generate_series(1, 32) AS n)),
                                E'\t\n\r', '');
    scheme    text := lower(substring(bare FROM '^([A-Za-z][A-Za-z0-9+.-]*):'));
    authority text;
    rest      text;
    host      text;
    port      text;
    parts     text[];
    part      text;
    base      integer;
    number    numeric;
    value     numeric := 0;
    address   inet;
    -- Those of the WHATWG fetch standard, and Redis'.
    bad_ports integer[] := ARRAY[
        0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
        110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
        532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
        5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080];
    bytes     bytea;
    -- Where in an IPv6 address an IPv4 address begins.
    embedded_at integer;
    why       text;
BEGIN
    IF coalesce(bare, '') = '' THEN
        RETURN 'the URL is empty';
    ELSIF octet_length(url) > 8192 THEN
        RETURN 'the URL is longer than 8192 bytes';
    ELSIF scheme IS NULL THEN
        RETURN 'not a URL: it does not begin with https://';
    ELSIF scheme NOT IN ('http', 'https') THEN
        -- Without scheme, what looks like one may be a user, and what follows a password.
        IF url ~ '@|%40|[^\x01-\x7f]' THEN
            RETURN 'the scheme is not http or https';
        END IF;
        RETURN format('the scheme is %s, not http or https', scheme);
    END IF;

    -- Up to the path, and after user and password.
    rest := regexp_replace(substr(bare, length(scheme) + 2), '^[/\\]*', '');
    authority := substring(rest FROM '^[^/\\?#]*');
    rest := regexp_replace(substr(rest, length(authority) + 1), '#.*$', '');
    authority := regexp_replace(authority, '^.*@', '');
    IF authority LIKE '[%' THEN
        host := substring(authority FROM '^\[([^]]*)\]');
        port := substring(authority FROM '^\[[^]]*\](.*)$');
    ELSE
        host := substring(authority FROM '^[^:]*');
        port := substr(authority, length(host) + 1);
    END IF;
    IF host IS NULL THEN
        RETURN 'not a URL: the bracket of the IPv6 address is not closed';
    ELSIF host = '' THEN
        RETURN 'the URL has no host';
    ELSIF port !~ '^(:[0-9]*)?$' OR length(ltrim(port, ':0')) > 5 THEN
        RETURN 'not a URL: the port is no number up to 65535';
    ELSIF coalesce(nullif(ltrim(port, ':0'), ''), '0')::integer > 65535 THEN
        RETURN 'not a URL: the port is no number up to 65535';
    ELSIF nullif(ltrim(port, ':'), '')::integer = ANY (bad_ports) THEN
        RETURN format('port %s cannot be called: it belongs to another protocol', ltrim(port, ':')::integer);
    END IF;

    IF authority LIKE '[%' THEN
        BEGIN
            address := host::inet;
        EXCEPTION WHEN invalid_text_representation THEN
            address := NULL;
        END;
        -- Postgres also reads a prefix length.
        IF address IS NULL OR family(address) <> 6 OR host !~ '^[0-9A-Fa-f:.]+$' THEN
            RETURN 'not a URL: what is in brackets is no IPv6 address';
        END IF;
    ELSE
        IF host LIKE '%\%%' THEN
            BEGIN
                SELECT convert_from(decode(string_agg(
                           CASE WHEN piece[1] ~ '^%.' THEN substr(piece[1], 2)
                                ELSE encode(convert_to(piece[1], 'UTF8'), 'hex') END,
                           '' ORDER BY at), 'hex'), 'UTF8')
                  INTO host
                  FROM regexp_matches(host, '%[0-9A-Fa-f]{2}|.', 'g') WITH ORDINALITY AS found(piece, at);
            EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
                RETURN 'not a URL: the host is no text';
            END;
        END IF;
        IF host ~ '[^\x01-\x7f]' AND getdatabaseencoding() = 'UTF8' THEN
            -- What is not seen is left out (UTS 46): soft hyphens, spaces without width, selectors of variants.
            host := regexp_replace(
                host, '[\u00AD\u034F\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B\u2060-\u2064\u206A-\u206F\u3164'
                      '\uFE00-\uFE0F\uFEFF\uFFA0\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0100-\U000E01EF]',
                '', 'g');
            host := translate(normalize(host, NFKC), U&'\3002', '.');
            -- Joiners and marks of direction belong to other scripts, if to any.
            IF host ~ '[\u200C-\u200F\u2028-\u202E]' AND host ~ '^[\u0001-\u007F\u200C-\u200F\u2028-\u202E]*$' THEN
                RETURN 'not a URL: the host has a character that no host has';
            END IF;
        END IF;
        host := lower(host);
        IF host ~ '[\x01-\x20"#%/:<>?@\\^`{|}\x7f]' OR host ~ '[][]' THEN
            RETURN 'not a URL: the host has a character that no host has';
        END IF;
        parts := string_to_array(regexp_replace(host, '\.$', ''), '.');
        -- A last part that is a number makes it an IPv4 address, or nothing.
        IF parts[cardinality(parts)] ~ '^([0-9]+|0x[0-9a-f]*)$' THEN
            FOR i IN 1 .. cardinality(parts) LOOP
                base := CASE WHEN parts[i] ~ '^0x' THEN 16 WHEN parts[i] ~ '^0.' THEN 8 ELSE 10 END;
                part := ltrim(regexp_replace(parts[i], '^0x', ''), '0');
                IF parts[i] = '' OR i > 4 OR length(part) > 12
                    OR part !~ (CASE base WHEN 16 THEN '^[0-9a-f]*$' WHEN 8 THEN '^[0-7]*$' ELSE '^[0-9]*$' END) THEN
                    RETURN 'not a URL: the host is neither a name nor an IPv4 address';
                END IF;
                number := 0;
                FOR digit IN 1 .. length(part) LOOP
                    number := number * base + strpos('0123456789abcdef', substr(part, digit, 1)) - 1;
                END LOOP;
                -- The last part fills what is left of the four bytes.
                IF number >= (CASE WHEN i < cardinality(parts) THEN 256 ELSE 256 ^ (5 - i) END) THEN
                    RETURN 'not a URL: the host is neither a name nor an IPv4 address';
                END IF;
                value := value + number * CASE WHEN i < cardinality(parts) THEN 256 ^ (4 - i) ELSE 1 END;
            END LOOP;
            address := '0.0.0.0'::inet + value::bigint;
        ELSIF parts[cardinality(parts)] = 'localhost' THEN
            -- Loopback everywhere (RFC 6761).
            address := '127.0.0.1';
        END IF;
    END IF;

    -- Path and query go out encoded, each byte of what no URL has as three. (A host in other scripts does so in its own
    -- way, which is not checked.)
    port := ltrim(port, ':0');
    IF (length(scheme) + length('://') + octet_length(host)
        + CASE WHEN port IN ('', CASE scheme WHEN 'https' THEN '443' ELSE '80' END) THEN 0 ELSE length(port) + 1 END
        + CASE WHEN rest ~ '^[/\\]' THEN 0 ELSE 1 END
        + 3 * octet_length(convert_to(rest, 'UTF8'))
        - 2 * length(regexp_replace(substring(rest FROM '^[^?]*'), '[^\x21-\x7e]|["<>`{}]', '', 'g'))
        - 2 * length(regexp_replace(coalesce(substring(rest FROM '\?.*$'), ''), '[^\x21-\x7e]|["<>'']', '', 'g'))) > 8192 THEN
        RETURN 'the URL is longer than 8192 bytes when it is encoded';
    END IF;

    -- An IPv6 address that carries an IPv4 address counts as that: mapped, translated, NAT64, 6to4.
    bytes := inet_send(address);
    IF address <<= '::ffff:0:0/96' OR address <<= '::ffff:0:0:0/96' OR address <<= '64:ff9b::/96' THEN
        embedded_at := 12;
    ELSIF address <<= '2002::/16' THEN
        embedded_at := 2;
    END IF;
    IF embedded_at IS NOT NULL THEN
        -- Four bytes of its own come before the address.
        address := array_to_string(ARRAY(
            SELECT get_byte(bytes, 4 + embedded_at + n) FROM generate_series(0, 3) AS n), '.')::inet;
    END IF;
    SELECT special.why
      INTO why
      FROM (VALUES
            ('0.0.0.0/8'::inet,   'this network'),
            ('10.0.0.0/8',        'private'),
            ('100.64.0.0/10',     'shared by a carrier'),
            ('127.0.0.0/8',       'loopback'),
            ('161.26.0.0/16',     'internal to a cloud'),
            ('166.8.0.0/14',      'internal to a cloud'),
            ('168.63.129.16/32',  'internal to a cloud'),
            ('169.254.0.0/16',    'link-local, metadata'),
            ('172.16.0.0/12',     'private'),
            ('192.0.0.0/24',      'protocol assignments'),
            ('192.0.2.0/24',      'documentation'),
            ('192.88.99.0/24',    '6to4 relays'),
            ('192.168.0.0/16',    'private'),
            ('198.18.0.0/15',     'benchmarking'),
            ('198.51.100.0/24',   'documentation'),
            ('203.0.113.0/24',    'documentation'),
            ('224.0.0.0/4',       'multicast'),
            ('240.0.0.0/4',       'reserved'),
            ('2001::/23',         'protocol assignments, Teredo'),
            ('2001:db8::/32',     'documentation'),
            ('3fff::/20',         'documentation')
           ) AS special(net, why)
     WHERE address <<= special.net;
    IF why IS NULL AND family(address) = 6 AND NOT address <<= '2000::/3' THEN
        why := 'not for global use';
    END IF;
    RETURN host(address) || ' may not be called: ' || why;
END
$$;

COMMENT ON FUNCTION relay.url_problem(text) IS
    'What is wrong with a webhook''s URL as far as it can be told without DNS; null when it may work. Knows neither --allow-net nor --https-only, nor the addresses of the relay''s machine.';

REVOKE ALL ON FUNCTION relay.url_problem(text) FROM PUBLIC;
