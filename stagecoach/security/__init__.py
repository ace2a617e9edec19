"""Who is who on the network: certificates, TLS, and what may listen where.

Used by both kinds of server and by the client; imports neither. Servers and links take TLS from
`credentials`, the commands make certificates with `authority`, a link asks `served` whether it
talks to a stage, and whoever could not connect asks `diagnosis` why.
"""
